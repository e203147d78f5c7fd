"""Fuzz test: damages tars, indexes, manifests, sidecars, plans, tables and zips at random, and reads them.

    python -m trials.fuzz_shards [--mutations 2000] [--seed 0]

Each damaged folder is read in a separate process with limits of time and memory. Good outcomes are a clear error
(`InputError`) and correct data; a crash, a hang, a traceback and different data are failures. Some files are forged:
their checksums match the wrong content. Correct data means the undamaged samples and index for shards, and what
pyarrow reads from the damaged file for tables.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.conversion import Tolerance, convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from data_prep.verify import verify
from trials.rig.damage import OPERATORS
from trials.rig.forgery import forge_document, forge_index, forge_manifest
from trials.rig.hand_made_train import TABLE, make_dataset, row, tree, write_rows
from trials.rig.several import several_rows, write_several
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.shards import Sample, ShardSet
from vlm2vec.shards.columns import entry_at

SUBSETS = ("A", "B", "S")
REFUSED, CORRECT = "refused", "read correctly"
GOOD = {REFUSED, CORRECT, "reported as unreadable"}
_LIMIT_SECONDS = 600.0
_LIMIT_BYTES = 3 << 30  # in addition to the memory that the process already uses


class DifferentDataError(Exception):
    """The data read differs from the data written."""


@dataclass(frozen=True)
class World:
    """An undamaged dataset, unpacked and zipped, its shards, and the samples in them."""

    dataset: Path
    zipped: Path
    shards: Path
    samples: tuple[Sample, ...]


def make_world(root: Path) -> World:
    """Ten rows in three shards per subset; those of S have several images per item and several hard negatives."""
    dataset = make_dataset(root / "MMEB-train")
    write_several(dataset, several_rows(), "S/original-00000-of-00001.parquet")
    rows = [row(number) for number in range(10)]
    write_rows(dataset, rows)
    write_rows(dataset, rows[::-1], "B/original-00000-of-00001.parquet")
    shards = root / "shards"
    convert(SourceData(dataset, dataset, SUBSETS), shards, replace(DEFAULT_OPTIONS, rows_per_shard=4))
    zipped = Path(shutil.copytree(dataset, root / "zipped"))
    (zipped / "images_zip").mkdir()
    with zipfile.ZipFile(zipped / "images_zip/A.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((zipped / "images/A/Train").iterdir()):
            archive.write(file, f"A/Train/{file.name}")
    shutil.rmtree(zipped / "images")
    return World(dataset, zipped, shards, tuple(samples_of(shards)))


def samples_of(shards: Path) -> list[Sample]:
    """Every sample of every subset."""
    opened = ShardSet.open(shards)
    return [opened.read(name, number) for name in opened.subsets for number in range(opened.num_samples[name])]


def read_shards(world: World, folder: Path) -> str:
    """Every sample is the undamaged one or an error, and `data_prep.verify` detects every damage."""
    changed = tree(folder) != tree(world.shards)
    expected = {(sample.subset, number): sample for sample, number in zip(world.samples, _numbers(world), strict=True)}
    try:
        whole = not verify(folder).problems
    except InputError:
        whole = False
    try:
        opened = ShardSet.open(folder)
    except InputError:
        return REFUSED
    errors = 0
    places = [(name, number) for name in opened.subsets for number in range(opened.num_samples[name])]
    if places != [place for place in expected if place[0] in opened.subsets]:
        raise DifferentDataError(f"{len(places)} samples")
    undamaged = ShardSet.open(world.shards)
    for place in places:
        try:
            sample = opened.read(*place)
        except InputError:
            errors += 1
            continue
        if sample != expected[place]:
            raise DifferentDataError(expected[place].key)
        if entry_at(opened.columns(place[0]), place[1]) != entry_at(undamaged.columns(place[0]), place[1]):
            raise DifferentDataError(f"{expected[place].key}: its entry in the index")
    if whole and (changed and errors):
        raise DifferentDataError("verify calls it whole, but it cannot be read")
    return REFUSED if errors else CORRECT


def _numbers(world: World) -> list[int]:
    """Each sample's position in its subset."""
    names = [sample.subset for sample in world.samples]
    return [names[:place].count(name) for place, name in enumerate(names)]


def continue_conversion(world: World, folder: Path) -> str:
    """The converter repairs the shards to the same bytes, or refuses."""
    try:
        convert(SourceData(world.dataset, world.dataset, SUBSETS), folder, replace(DEFAULT_OPTIONS, rows_per_shard=4))
    except InputError:
        return REFUSED
    if tree(folder) != tree(world.shards):
        raise DifferentDataError("the completed shards")
    return CORRECT


def convert_table(world: World, folder: Path) -> str:
    """A damaged table is refused, or the shards contain what pyarrow reads from it."""
    try:
        conversion = convert(
            SourceData(folder, folder, ["A"]), folder.with_name("out"), replace(DEFAULT_OPTIONS, rows_per_shard=4)
        )
    except InputError:
        return REFUSED
    rows = [
        (record["qry"] or "", record["pos_text"] or "")
        for record in pq.read_table(folder / TABLE).to_pylist()
        if (record["qry"] or record["qry_image_path"]) and (record["pos_text"] or record["pos_image_path"])
    ]
    if conversion.manifest is None:
        return "reported as unreadable"
    samples = samples_of(folder.with_name("out"))
    if [(sample.query.text, sample.positive.text) for sample in samples] != rows:
        raise DifferentDataError("the shards' texts")
    return CORRECT


def convert_zip(world: World, folder: Path) -> str:
    """A damaged zip is refused, its images are reported, or the shards are the undamaged ones."""
    out = folder.with_name("out")
    try:
        conversion = convert(
            SourceData(folder, folder, ["A"]),
            out,
            replace(DEFAULT_OPTIONS, rows_per_shard=4, check_images="none"),
            tolerance=Tolerance(max_missing=3),
        )
    except InputError:
        return REFUSED
    if conversion.manifest is not None and conversion.report.total.samples:
        expected = {sample.key: sample for sample in world.samples}
        if any(sample != expected[sample.key] for sample in samples_of(out)):
            raise DifferentDataError("an image")
    return "reported as unreadable" if conversion.report.total.unusable_images else CORRECT


@dataclass(frozen=True)
class Target:
    """A kind of file to damage: its folder, its name, a sibling to swap with, and the function that reads it.

    If there is a `forge`, it does the damage, so that all checksums match.
    """

    folder: Callable[[World], Path]
    file: str
    sibling: str
    read: Callable[[World, Path], str]
    forge: Callable[[Path, str, random.Random], None] | None = None


TARGETS: dict[str, Target] = {
    "tar": Target(lambda world: world.shards, "A/A-00001.tar", "A/A-00000.tar", read_shards),
    "index": Target(lambda world: world.shards, "A/A-00001.parquet", "A/A-00000.parquet", read_shards),
    "tar of lists": Target(lambda world: world.shards, "S/S-00001.tar", "S/S-00000.tar", read_shards),
    "index of lists": Target(lambda world: world.shards, "S/S-00001.parquet", "S/S-00000.parquet", read_shards),
    "forged lists": Target(lambda world: world.shards, "S/S-00001.parquet", "", read_shards, forge_index),
    "manifest": Target(lambda world: world.shards, "manifest.json", "report.json", read_shards),
    "table": Target(lambda world: world.dataset, TABLE, "B/original-00000-of-00001.parquet", convert_table),
    "zip": Target(lambda world: world.zipped, "images_zip/A.zip", TABLE, convert_zip),
    "sidecar": Target(lambda world: world.shards, "A/A-00001.json", "A/A-00000.json", continue_conversion),
    "index at resume": Target(
        lambda world: world.shards, "A/A-00001.parquet", "B/B-00001.parquet", continue_conversion
    ),
    "plan": Target(lambda world: world.shards, "plan.json", "manifest.json", continue_conversion),
    "forged manifest": Target(lambda world: world.shards, "manifest.json", "", read_shards, forge_manifest),
    "forged index": Target(lambda world: world.shards, "A/A-00001.parquet", "", read_shards, forge_index),
    "forged sidecar": Target(lambda world: world.shards, "A/A-00001.json", "", continue_conversion, forge_document),
    "forged plan": Target(lambda world: world.shards, "plan.json", "", continue_conversion, forge_document),
}


@dataclass(frozen=True)
class Outcome:
    """The result of one mutation; `detail` describes a failure."""

    target: str
    operator: str
    outcome: str
    detail: str

    @property
    def is_good(self) -> bool:
        """Whether an error was reported clearly, or nothing was wrong."""
        return self.outcome in GOOD


def mutate(world: World, work: Path, number: int, seed: int) -> Outcome:
    """Makes mutation `number`, and reads the result in a separate process."""
    generator = random.Random(f"{seed}-{number}")
    name = list(TARGETS)[number % len(TARGETS)]
    target = TARGETS[name]
    operator = "forged" if target.forge else generator.choice(list(OPERATORS))
    folder = work / str(number) / "damaged"
    shutil.copytree(target.folder(world), folder)
    path = folder / target.file
    if target.forge:
        target.forge(folder, target.file, generator)
    else:
        content, sibling = bytearray(path.read_bytes()), (folder / target.sibling).read_bytes()
        path.write_bytes(OPERATORS[operator](content, generator, sibling))
    outcome, detail = in_own_process(partial(target.read, world, folder))
    shutil.rmtree(work / str(number))
    return Outcome(name, operator, outcome, detail)


def in_own_process(action: Callable[[], str]) -> tuple[str, str]:
    """Runs an action in a separate process; returns (its result or how it failed, details)."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_act, args=(action, sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(_LIMIT_SECONDS) else ("hang", "")
    except EOFError:
        process.join()
        result = ("crash", f"exit code {process.exitcode}")
    process.kill()
    process.join()
    return result


def _act(action: Callable[[], str], sender: Connection) -> None:
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        sender.send((action(), ""))
    except DifferentDataError as error:
        sender.send(("different data", str(error)))
    except BaseException:
        sender.send(("traceback", traceback.format_exc()))


def run(mutations: int, seed: int, work: Path) -> list[Outcome]:
    """Makes a world below `work` and the given number of mutations of it."""
    world = make_world(work / "world")
    return [mutate(world, work, number, seed) for number in range(mutations)]


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.fuzz_shards",
        description=first_line(__doc__),
        examples=("python -m trials.fuzz_shards --mutations 200",),
    )
    made.add_argument("--mutations", type=int, default=2000, help="Number of damaged folders.")
    made.add_argument("--seed", type=int, default=0, help="Seed of the random choices.")
    return made


def main() -> None:
    """Parses the command line, runs, prints a table of outcomes and every failure."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(arguments.mutations, arguments.seed, Path(folder))
    for target in TARGETS:
        counts = Counter(outcome.outcome for outcome in outcomes if outcome.target == target)
        print(f"{target:<16}" + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    failures = [outcome for outcome in outcomes if not outcome.is_good]
    for failure in failures:
        print(f"{failure.target}, {failure.operator}: {failure.outcome}\n{failure.detail}")
    print(f"{len(outcomes)} mutations, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    sys.exit(run_program(main))
