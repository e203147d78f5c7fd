"""The exported folder's README.md: what the model is, how it was trained, what it scored, how it is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vlm2vec.errors import InputError
from vlm2vec.export.exported import Exported
from vlm2vec.training.arguments import DataArguments, ModelArguments, TrainingArguments
from vlm2vec.training.checkpoint import RunRecord

SCORES_FILE = "scores.json"
_ARXIV = "https://arxiv.org/abs/2410.05160"
_PATHS = ("model_name", "dataset_name", "output_dir", "deepspeed", "image_dir")
_IN_HUB = re.compile(r"[\w.-]+/[\w.-]+")

_TEMPLATE = """# {title}

{kind} for embeddings: one vector of length 1 for a text, a picture or both. Trained with
VLM2Vec on DeepSpeed after [VLM2Vec]({arxiv}).

## Use

The code is in the package `vlm2vec-deepspeed`, which must be installed for all of these.

```python
from vlm2vec import VLM2Vec

encoder = VLM2Vec.from_pretrained("{folder}")
queries = encoder.encode(
    texts=["<|image_1|> Represent the given image with the following question: What is in the image"],
    images=["picture.jpg"],
)
targets = encoder.encode(texts=["A cat and a dog", "A cat and a tiger"])
print(encoder.similarity(queries, targets))
```

With [sentence-transformers](https://sbert.net) 6 (`trust_remote_code` runs `vlm2vec_module.py`, which imports that
package and says so if it is missing):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}", trust_remote_code=True)
model.encode(["A cat and a dog", {{"image": "picture.jpg", "text": "Represent the given image."}}])
```

{more_use}
## Training

| | |
| --- | --- |
| base model | {base} |
| data | {data} |
| steps | {steps} |
| engine | {engine} |
| versions | {versions} |

{arguments}
{scores}## Files

{files}
"""


@dataclass(frozen=True)
class Scores:
    """What an evaluation wrote; accuracies between 0 and 1.

    Attributes:
        benchmark: Its name, or None.
        groups: For each meta-task, and "overall": accuracy, chance, datasets scored, datasets of the benchmark.
    """

    benchmark: str | None
    groups: Mapping[str, tuple[float, float, int, int]]


def read_scores(folder: Path) -> Scores:
    """Reads the scores that `python -m eval.mmeb` wrote to a folder.

    Raises:
        InputError: No such file, or another program's.
    """
    file = folder / SCORES_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        means = {**content["meta_tasks"], **{name: content[name] for name in ("IND", "OOD", "overall") if name in content}}
        keys = ("acc", "chance", "num_datasets", "num_datasets_of_benchmark")
        groups = {name: tuple(mean[key] for key in keys) for name, mean in means.items()}
        groups["overall"]  # noqa: B018 - must be there
    except FileNotFoundError:
        raise InputError(f"--scores {folder}: no {SCORES_FILE} in it; write it with python -m eval.mmeb") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--scores {file}: not as python -m eval.mmeb writes it ({error!r})") from error
    return Scores(content.get("benchmark"), groups)  # type: ignore[arg-type]


def write_card(folder: Path, name: str, record: RunRecord, exported: Exported, scores: Scores | None) -> None:
    """Writes README.md with the Hub's metadata at its head.

    Args:
        folder: Where to.
        name: The model's.
        record: The run's.
        exported: What was written.
        scores: Of an evaluation, if there is one.
    """
    arguments = dict(record.arguments)
    base = str(arguments["model_name"])
    data = ModelCardData(
        base_model=base if _in_hub(base) else None,
        base_model_relation=("adapter" if exported.is_adapter else "finetune") if _in_hub(base) else None,
        library_name="peft" if exported.is_adapter else "sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "feature-extraction", "multimodal-embedding", "phi3_v", "vlm2vec"],
        model_name=name,
        eval_results=_eval_results(scores) if scores else None,
    )
    text = _TEMPLATE.format(
        title=name,
        kind="An adapter" if exported.is_adapter else "A model",
        arxiv=_ARXIV,
        folder=name,
        more_use=_more_use(exported, name, base),
        base=_public(base),
        data=f"{_public(str(arguments['dataset_name']))}, subsets {' '.join(arguments['subset_name'])}; shards "
        f"{record.data.get('shards', 'unknown')}",
        steps=f"{record.step:,}, global batch {_global_batch(record):,}",
        engine=f"DeepSpeed ZeRO-{record.zero_stage}, {record.num_ranks} ranks",
        versions=", ".join(f"{package} {version}" for package, version in record.versions.items()) or "unknown",
        arguments=_arguments_table(arguments),
        scores=_scores_section(scores) if scores else "",
        files=_files_section(exported),
    )
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
