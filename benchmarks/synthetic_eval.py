"""Writes a folder of MMEB-eval's real size from a few images: 36 datasets of 1,000 rows with its candidate counts.

python -m benchmarks.synthetic_eval IMAGES OUT [--rows 1000]

IMAGES is any folder of images; up to 400 of them are copied and reused with different texts.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.mmeb import MMEB, MMEB_EVAL_ROWS, EvalDataset

NUM_IMAGES = 400
# Number of distinct candidates of a dataset whose rows have 1,000 each.
POOL = 2_000
SEED = 0


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.synthetic_eval",
        description=first_line(__doc__),
        examples=("python -m benchmarks.synthetic_eval demo/mini/MMEB-eval/images SYNTHETIC --rows 1000",),
    )
    made.add_argument("images", type=Path, help="Folder of PNG or JPEG images, searched with its sub-folders.")
    made.add_argument("output", type=Path, help="Folder to make.")
    made.add_argument("--rows", type=int, default=MMEB_EVAL_ROWS, help="Rows per dataset.")
    return made


def main() -> None:
    """Builds the folder from the command line."""
    options = parser().parse_args()
    build(options.images, options.output, options.rows)


def build(images: Path, output: Path, num_rows: int = MMEB_EVAL_ROWS) -> None:
    """Writes `<output>/<dataset>/test-00000-of-00001.parquet` and `<output>/images/`.

    Raises:
        InputError: There are no images, or the output exists.
    """
    found = sorted(path for path in images.rglob("*") if path.suffix in (".png", ".jpg"))[:NUM_IMAGES]
    if not found:
        raise InputError(f"{images}: no .png or .jpg in it")
    if output.exists():
        raise InputError(f"{output}: exists already; choose a different folder or remove it")
    (output / "images").mkdir(parents=True)
    names = []
    for number, path in enumerate(found):
        names.append(f"{number:03d}{path.suffix}")
        shutil.copy(path, output / "images" / names[-1])
    generator = np.random.default_rng(SEED)
    for number, dataset in enumerate(MMEB.eval_datasets):
        (output / dataset.name).mkdir()
        table = _table(dataset, number, names, num_rows, generator)
        pq.write_table(table, output / dataset.name / "test-00000-of-00001.parquet", compression="zstd")
    print(f"{output}: {len(MMEB.eval_datasets)} datasets of {num_rows:,} rows, {len(names)} images")


def _table(
    dataset: EvalDataset, number: int, images: list[str], num_rows: int, generator: np.random.Generator
) -> pa.Table:
    in_retrieval = dataset.meta_task == "retrieval"
    query_has_image = not (in_retrieval and number % 3 == 0)
    target_has_image = dataset.meta_task == "grounding" or (in_retrieval and number % 2 == 0)
    pool = POOL if dataset.num_candidates == MMEB_EVAL_ROWS and dataset.meta_task != "classification" else 0
    pool = pool or dataset.num_candidates
    truths = generator.integers(0, pool, num_rows)
    # Consecutive entries of the pool, beginning with the row's truth, so that the candidates are distinct.
    places = (truths[:, None] + np.arange(dataset.num_candidates)) % pool
    query_images = _images(images, np.arange(num_rows) + number, query_has_image)
    target_images = _images(images, np.arange(pool) + 7 * number, target_has_image)
    query = "<|image_1|>\nAnswer question" if query_has_image else "Find the picture of event"
    target = "<|image_1|>\nRepresent picture" if target_has_image else "The answer with number"
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * dataset.num_candidates)
    indices = pa.array(places.ravel())
    texts = pa.array([f"{target} {place} of {dataset.name}\n" for place in range(pool)])
    return pa.table(
        {
            "qry_text": [f"{query} {row} of {dataset.name}\n" for row in range(num_rows)],
            "qry_img_path": query_images,
            "tgt_text": pa.ListArray.from_arrays(offsets, texts.take(indices)),
            "tgt_img_path": pa.ListArray.from_arrays(offsets, target_images.take(indices)),
        }
    )


def _images(images: list[str], numbers: npt.NDArray[np.int64], present: bool) -> pa.Array:
    return pa.array([images[number % len(images)] if present else "" for number in numbers])


if __name__ == "__main__":
    sys.exit(run_program(main))
