"""The exported folder's README.md: what the model is, how it was trained, what it scored, how it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlm2vec.errors import InputError
from vlm2vec.export.base import BaseModel
from vlm2vec.export.exported import Exported
from vlm2vec.export.scores import Mean, Scores
from vlm2vec.files import committed
from vlm2vec.mmeb import MMEB
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.shards.manifest import Manifest
from vlm2vec.training.checkpoints.writer import RunRecord

CARD = "README.md"
# The benchmark's repositories on the Hub, and the language of its texts.
_MMEB_TRAIN, _MMEB_EVAL, _MMEB_LANGUAGE = "TIGER-Lab/MMEB-train", "TIGER-Lab/MMEB-eval", "en"
# What a card says of its license; a model that is trained from another one has that one's.
_LICENSE = ("license", "license_name", "license_link")
_EXAMPLES = re.compile(r"^```python\n.*?^```$", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(r'SentenceTransformer\("([^"]+)"')
_TEMPLATE = Path(__file__).with_name("card_template.md")
_IN_HUB = re.compile(r"[\w.-]+/[\w.-]+")
# Arguments that say where things were on the machine that trained.
_PATHS = ("model_name", "dataset_name", "deepspeed", "resume")
_PRIVATE = ("output_dir", "config")


def write_card(
    folder: Path, name: str, record: RunRecord, exported: Exported, base_model: BaseModel | None, scores: Scores | None
) -> None:
    """Writes the model card, with the Hub's metadata at its head.

    Args:
        folder: Where to write it; its `vlm2vec_config.json` is there already.
        name: The model's.
        record: The run's.
        exported: What was written.
        base_model: The base model if it is at hand; its card says under which license it is.
        scores: Of an evaluation, if there is one.
    """
    arguments = dict(record.arguments)
    base = public_name(str(arguments["model_name"]))
    prompts = ModelSettings.read(folder).prompt_format
    known = in_hub(base)
    datasets = _datasets(record)
    metadata = ModelCardData(
        **(license_of(base_model.folder) if base_model is not None else {}),
        language=_MMEB_LANGUAGE if datasets == [_MMEB_TRAIN] else None,
        base_model=base if known else None,
        base_model_relation=("adapter" if exported.is_adapter else "finetune") if known else None,
        datasets=datasets,
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


def name_repository(folder: Path, repository: str) -> None:
    """Lets the examples of a folder's card load the model by the name of its repository.

    Raises:
        InputError: The card cannot be read.
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8")
    loaded = _LOADED.search(text)
    if loaded is None:
        return  # the card was rewritten by hand
    named = _EXAMPLES.sub(lambda example: example[0].replace(f'"{loaded[1]}"', f'"{repository}"'), text)
    if named != text:
        with committed(card) as temporary:
            temporary.write_text(named, encoding="utf-8")


def license_of(folder: Path) -> dict[str, Any]:
    """The license that a model's card names; empty without a card, or where it names none."""
    try:
        data = ModelCard.load(folder / CARD).data.to_dict() if (folder / CARD).is_file() else {}
    except (OSError, ValueError, yaml.YAMLError):  # of a card that others wrote: not worth an export
        return {}
    return {key: data[key] for key in _LICENSE if data.get(key)}


def public_name(name: str) -> str:
    """A repository's name as it is; of a path its last part, as cards are published."""
    return name if in_hub(name) and not Path(name).exists() else Path(name).name


def in_hub(name: str) -> bool:
    """Whether a name has the form of a repository's."""
    return _IN_HUB.fullmatch(name) is not None


def _datasets(record: RunRecord) -> list[str] | None:
    """Where the training data are on the Hub; None if that is not known.

    MMEB's data are recognised by the names of their subsets, as `vlm2vec.evaluation` recognises the benchmark.
    """
    subsets = set(record.arguments.get("subset_name") or ["all"])
    if "all" in subsets:
        try:
            manifest = Manifest.read(Path(str(record.arguments.get("dataset_name"))))
        except InputError:  # behind a URL, moved or converted anew
            return None
        subsets = set(manifest.subsets) if manifest.fingerprint == record.data.get("shards") else set()
    return [_MMEB_TRAIN] if subsets and subsets <= {each.name for each in MMEB.train_subsets} else None


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
            dataset_type=_MMEB_EVAL if scores.benchmark == MMEB.name else scores.benchmark.lower(),
            dataset_name=scores.benchmark,
            dataset_config=group,
            metric_type="precision_at_1",
            metric_name=f"Precision@1, mean of {mean.num_datasets} datasets",
            metric_value=round(100 * mean.acc, 2),
        )
        for group, mean in scores.means.items()
    ]
