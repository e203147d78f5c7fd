"""Downloads MMEB-train's tables and zips from the hub, and checks that every image named in the tables is there.

    python -m data_prep.download --dataset_name TIGER-Lab/MMEB-train --subset_name all --output_dir MMEB-train

After an interruption, the same command continues: complete files are kept, and the interrupted file starts again
(huggingface_hub resumes within a file only while the program runs). If the dataset is a local folder, the program only
checks the images.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from data_prep.archive import ARCHIVE_FOLDER
from data_prep.command_line import ALLOW_LINKS_HELP, EXIT_INCOMPLETE, Parser
from data_prep.conversion_report import FIRST_NAMES
from data_prep.images import SubsetImages, UnusableImageError, refuse_linked_folders
from data_prep.source import ALL_SUBSETS, DOWNLOAD_HINT, source_tables, subset_names
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.progress import progress_bar

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Files to download: tables, the files of `datasets.save_to_disk`, and images.
_WHOLE = [f"*.{kind}" for kind in ("parquet", "jsonl", "json", "csv", "tsv", "arrow")]
_WHOLE += [f"*.{kind}" for kind in ("jpg", "jpeg", "JPG", "JPEG", "png", "PNG", "webp", "gif", "bmp")]


def download(name: str, subsets: list[str], split: str, output_dir: Path | None = None) -> Path:
    """Returns a dataset's folder; downloads the dataset if `name` is a repository on the hub.

    Args:
        name: A folder, or "owner/name" on the hub.
        subsets: Their names, or ["all"].
        split: Prefix of the tables.
        output_dir: Where to download to; None: the hub's cache.

    Returns:
        The folder with the tables and images_zip.

    Raises:
        InputError: Neither a folder nor a dataset that can be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    chosen = ["*"] if subsets == [ALL_SUBSETS] else subsets
    patterns = [f"{subset}/{split}-*.parquet" for subset in chosen]
    patterns += [f"{ARCHIVE_FOLDER}/{subset}.zip" for subset in chosen]
    return _snapshot(name, patterns, output_dir)


def download_whole(name: str) -> Path:
    """Returns the folder of a dataset of any layout; downloads all its tables and images if it is on the hub.

    Raises:
        InputError: Neither a folder nor a dataset that can be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    return _snapshot(name, ["README.md", *_WHOLE], None)


def _snapshot(name: str, patterns: list[str], output_dir: Path | None) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{name}: no such folder; {DOWNLOAD_HINT}")
    from huggingface_hub import snapshot_download  # takes 0.5 s, and most conversions read a local folder

    try:
        folder = snapshot_download(name, repo_type="dataset", allow_patterns=patterns, local_dir=output_dir)
    except Exception as error:  # offline, unknown, gated, malformed: the hub's client has many types of errors
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: no such folder, and it cannot be downloaded ({reason}); try again") from error
    return Path(folder)


def missing_images(
    dataset_dir: Path, image_dir: Path, subsets: list[str], split: str, allow_links: bool = False
) -> dict[str, list[str]]:
    """Returns, by subset, the images that are named in the tables but missing, with the reason.

    Raises:
        InputError: Something is wrong with the folders, the subsets, the tables or the zips.
    """
    missing: dict[str, list[str]] = {}
    names = subset_names(dataset_dir, subsets, split)
    refuse_linked_folders(image_dir, names, allow_links)
    with progress_bar(len(names), "check", "subset") as progress:
        for name in names:
            tables = source_tables(dataset_dir, name, split)
            source = SubsetImages(image_dir, name, allow_links)
            missing[name] = []
            for path in dict.fromkeys(path for table in tables for path in table.image_paths()):
                try:
                    source.check(path)
                except UnusableImageError as error:
                    missing[name].append(str(error))
            progress.update()
    return missing


def _show(missing: Mapping[str, list[str]]) -> None:
    for subset, reasons in missing.items():
        print(f"{subset}: {len(reasons)} images missing" if reasons else f"{subset}: all images are there")
        for reason in reasons[:FIRST_NAMES]:
            print(f"  {reason}")
        if len(reasons) > FIRST_NAMES:
            print(f"  and {len(reasons) - FIRST_NAMES} more")


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.download",
        description="Downloads MMEB-train and checks that every image which its rows name is there. Exit code "
        f"{EXIT_INCOMPLETE} if one is missing.",
        examples=(
            "python -m data_prep.download --dataset_name TIGER-Lab/MMEB-train --subset_name VisDial NIGHTS "
            "--output_dir MMEB-train",
            "python -m data_prep.download --dataset_name demo/mini/MMEB-train",
        ),
    )
    made.add_argument(
        "--dataset_name",
        required=True,
        metavar="NAME|DIR",
        help="Name on the Hugging Face hub, or a folder to check.",
    )
    made.add_argument(
        "--subset_name",
        nargs="+",
        default=[ALL_SUBSETS],
        metavar="NAME",
        help=f"Subsets, or '{ALL_SUBSETS}' for every subset of the split.",
    )
    made.add_argument(
        "--split_name", default="original", metavar="NAME", help="Split: original or diverse_instruction."
    )
    made.add_argument(
        "--output_dir", type=Path, metavar="DIR", help="Folder for the files. If not given: the cache of the hub."
    )
    made.add_argument(
        "--image_dir", type=Path, metavar="DIR", help="Folder of the images. If not given: the dataset's folder."
    )
    made.add_argument("--allow_links", action="store_true", help=ALLOW_LINKS_HELP)
    return made


def main() -> int:
    """Parses the command line, downloads, checks."""
    arguments = parser().parse_args()
    if arguments.output_dir and Path(arguments.dataset_name).is_dir():
        raise InputError(f"{arguments.dataset_name}: is a folder already; --output_dir would have no effect")
    folder = download(arguments.dataset_name, arguments.subset_name, arguments.split_name, arguments.output_dir)
    image_dir = arguments.image_dir or folder
    missing = missing_images(folder, image_dir, arguments.subset_name, arguments.split_name, arguments.allow_links)
    _show(missing)
    print(folder)
    return EXIT_INCOMPLETE if any(missing.values()) else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
