"""The exported folder's README.md: what the model is, how it was trained, what it scored, how it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlm2vec.export.exported import Exported
from vlm2vec.export.scores import Mean, Scores
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.training.checkpoints.writer import RunRecord

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card_template.md")
_IN_HUB = re.compile(r"[\w.-]+/[\w.-]+")
# Arguments that say where things were on the machine that trained.
_PATHS = ("model_name", "dataset_name", "deepspeed", "resume")
_PRIVATE = ("output_dir", "config")


def write_card(folder: Path, name: str, record: RunRecord, exported: Exported, scores: Scores | None) -> None:
    """Writes the model card, with the Hub's metadata at its head.

    Args:
        folder: Where to; its `vlm2vec_config.json` is there already.
        name: The model's.
        record: The run's.
        exported: What was written.
        scores: Of an evaluation, if there is one.
    """
    arguments = dict(record.arguments)
    base = public_name(str(arguments["model_name"]))
    prompts = ModelSettings.read(folder).prompt_format
    known = in_hub(base)
    metadata = ModelCardData(
        base_model=base if known else None,
        base_model_relation=("adapter" if exported.is_adapter else "finetune") if known else None,
        library_name="peft" if exported.is_adapter else "sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=[
            *("sentence-transformers", "feature-extraction", "multimodal-embedding"),
            *(exported.family.model_type, "vlm2vec"),
        ],
        model_name=name,
        eval_results=_eval_results(scores) if scores is not None else None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        name=name,
        base=base,
        model_import=exported.family.model_import,
        model_class=exported.family.backbone.__name__,
        causal_class=exported.family.backbone.causal_class,
        is_adapter=exported.is_adapter,
        has_lm_head=exported.has_lm_head,
        is_tied=exported.is_tied,
        base_at_hand=exported.base_at_hand,
        takes_instruction=prompts is not None and prompts.takes_instruction,
        precision=exported.dtype_name,
        record=record,
        global_batch=_global_batch(record),
        dataset=public_name(str(arguments.get("dataset_name"))),
        subsets=" ".join(arguments.get("subset_name") or ["all"]),
        arguments=_as_recipe(arguments),
        benchmark=scores.benchmark if scores is not None else None,
        scored_model=public_name(scores.model) if scores is not None else None,
        fingerprint=scores.fingerprint if scores is not None else None,
        rows=[_row(group, mean) for group, mean in scores.means.items()] if scores is not None else [],
    )
    card.save(folder / CARD)


def public_name(name: str) -> str:
    """A repository's name as it is; of a path its last part, as cards are published."""
    return name if in_hub(name) and not Path(name).exists() else Path(name).name


def in_hub(name: str) -> bool:
    """Whether a name has the form of a repository's."""
    return _IN_HUB.fullmatch(name) is not None


def _global_batch(record: RunRecord) -> int:
    whole = record.arguments.get("global_batch_size")
    return int(whole or record.arguments["per_device_train_batch_size"] * record.num_ranks)


def _as_recipe(arguments: dict[str, Any]) -> str:
    """The arguments as a recipe's YAML; what was not given and where things lay on the machine is left out."""
    shown = {name: value for name, value in arguments.items() if value not in (None, []) and name not in _PRIVATE}
    shown |= {name: public_name(str(shown[name])) for name in _PATHS if name in shown}
    return yaml.safe_dump(shown, sort_keys=True, allow_unicode=True).rstrip()


def _row(group: str, mean: Mean) -> str:
    of = f"{mean.num_datasets} of {mean.num_datasets_of_benchmark}"
    return f"| {group} | {of} | {100 * mean.acc:.1f} | {100 * mean.chance:.1f} |"


def _eval_results(scores: Scores) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=scores.benchmark.lower(),
            dataset_name=scores.benchmark,
            dataset_config=group,
            metric_type="precision_at_1",
            metric_name=f"Precision@1, mean of {mean.num_datasets} datasets",
            metric_value=round(100 * mean.acc, 2),
        )
        for group, mean in scores.means.items()
    ]
