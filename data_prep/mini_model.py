"""Writes a tiny random-weights model for the miniature: a family's full-size code with small numbers.

    python -m data_prep.mini_model --dataset_name DATA/MMEB-train --output_dir OUT [--family phi3_v] [--seed 0]

The tokenizer is trained on the miniature's texts, with the family's pipeline and added tokens. The same family, seed
and texts give the same bytes. The families' sizes are in data_prep/mini/models/.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

import pyarrow.parquet as pq
import transformers

from data_prep.command_line import Parser
from data_prep.mini.models import BUILDERS
from vlm2vec.backbones.registry import family_named
from vlm2vec.device import choose_accelerator
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.model_folder.settings import ModelSettings

DEFAULT_FAMILY = "phi3_v"
# A file that marks a folder as written by this program.
MARK_FILE = "mini_model.json"


def read_texts(dataset: Path) -> Iterator[str]:
    """All texts of an MMEB-train folder, every split.

    Raises:
        InputError: There are no parquet files, or one cannot be read.
    """
    files = sorted(dataset.glob("*/*.parquet"))
    if not files:
        raise InputError(f"{dataset}: no <Subset>/*.parquet; build the miniature with python -m data_prep.mini_mmeb")
    for file in files:
        try:
            columns = [name for name in ("qry", "pos_text", "neg_text") if name in pq.read_schema(file).names]
            table = pq.read_table(file, columns=columns)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a readable parquet file ({error})") from error
        for column in table.columns:
            yield from (text for text in column.to_pylist() if text)


def build_mini_model(dataset: Path, output_dir: Path, seed: int = 0, family: str = DEFAULT_FAMILY) -> int:
    """Writes the tiny model's folder, which gets its final name only when it is complete.

    Args:
        dataset: The miniature's MMEB-train folder, for its texts.
        output_dir: A new folder, or one that this program wrote, which is replaced.
        seed: Decides the weights.
        family: The model's `model_type`.

    Returns:
        The number of parameters.

    Raises:
        InputError: There is no miniature of this family, there are no texts, or the output folder contains something
            else.
    """
    if family not in BUILDERS:
        raise InputError(f"no miniature of the family {family!r}; there are {', '.join(sorted(BUILDERS))}")
    if (
        output_dir.exists()
        and not (output_dir / MARK_FILE).is_file()
        and (not output_dir.is_dir() or any(output_dir.iterdir()))
    ):
        raise InputError(f"{output_dir}: exists and is not a mini model; remove it or choose another folder")
    model, processor = BUILDERS[family](read_texts(dataset), seed)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".mini-model-") as temporary:
        folder = Path(temporary, "new")
        model.save_pretrained(str(folder))
        processor.save_pretrained(folder)
        if family_named(family, folder).recognise_format(folder) != processor.prompt_format.name:
            settings = ModelSettings(prompt_format=processor.prompt_format)
            settings.with_limits(processor.image_limits).write(folder)
        (folder / MARK_FILE).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
        if output_dir.exists():
            os.replace(output_dir, Path(temporary, "old"))
        os.replace(folder, output_dir)
    return sum(parameter.numel() for parameter in model.parameters())


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.mini_model",
        description="Writes a tiny model with random weights, and a tokenizer trained on the miniature MMEB.",
        examples=("python -m data_prep.mini_model --dataset_name demo/mini/MMEB-train --output_dir demo/untrained",),
    )
    made.add_argument(
        "--dataset_name", type=Path, required=True, metavar="DIR", help="MMEB-train folder of the miniature."
    )
    made.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="Folder for the model.")
    made.add_argument(
        "--family",
        choices=sorted(BUILDERS),
        default=DEFAULT_FAMILY,
        metavar="NAME",
        help=f"Model family: {', '.join(sorted(BUILDERS))}.",
    )
    made.add_argument("--seed", type=int, default=0, help="Seed of the weights.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and builds."""
    arguments = parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # the progress bar of one small file
    choose_accelerator()  # transformers imports DeepSpeed to save a model
    count = build_mini_model(arguments.dataset_name, arguments.output_dir, arguments.seed, arguments.family)
    print(f"{arguments.output_dir}: {count:,} parameters")


if __name__ == "__main__":
    sys.exit(run_program(main))
