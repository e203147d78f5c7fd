"""Mines hard negatives, false negatives and clusters of mutually hard pairs from shards, with a teacher model.

    python -m data_prep.mine SHARDS --model_name TEACHER --output_dir MINED

Any number of ranks, started by `deepspeed --module data_prep.mine ...` or `torchrun -m data_prep.mine ...`, writes the
same files. After a kill, the same command continues. The shards are not changed. docs/mining.md describes the files and
how training uses them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

import torch
from transformers.utils.logging import disable_progress_bar

from data_prep.command_line import Parser, not_negative, positive
from data_prep.locking import locked
from data_prep.mining.embed import ShardItems, ShardItemSource, measure
from data_prep.mining.output import EMBEDDINGS_FOLDER, MiningPlan, OutputFolder, shards_of
from data_prep.mining.rank import RankStore, SubsetTargets, rank_block, unit_vectors
from data_prep.mining.report import print_report
from data_prep.mining.settings import (
    CLUSTER_METHODS,
    CLUSTER_SIZE,
    METIS,
    NUM_CANDIDATES,
    NUM_NEGATIVES,
    MiningSettings,
    SkipRanks,
)
from data_prep.mining.subset import mine_subset
from data_prep.mining.teacher import TeacherFolder
from vlm2vec import __version__
from vlm2vec.device import device_of_rank
from vlm2vec.errors import InputError
from vlm2vec.evaluation.encoding import collapse, encode_blocks
from vlm2vec.evaluation.encoding_plan import EncodingPlan
from vlm2vec.evaluation.vector_store import VectorStore
from vlm2vec.inputs.packing import default_batch_tokens
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.progress import progress_bar, still_running
from vlm2vec.messages.words import counted
from vlm2vec.mined.format import Mined, Teacher
from vlm2vec.ranks import (
    host_ranks,
    is_first_rank,
    on_every_rank,
    on_first_rank,
    own_rank,
    run_ranks_program,
    world_size,
)
from vlm2vec.shards import ShardSet

_KEY_DIGITS = 16


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.mine",
        description="Mines hard negatives, and clusters of mutually hard pairs, from shards with a teacher model. "
        "Training uses them with --mined. The shards stay unchanged; a run that was stopped is continued by the same "
        "command.",
        examples=(
            "python -m data_prep.mine demo/shards --model_name demo/trained --output_dir MINED",
            "deepspeed --num_gpus 8 --module data_prep.mine SHARDS --model_name TEACHER --output_dir MINED "
            "--skip_ranks retrieval=30 vqa=70 --num_negatives 4 --cluster_size 32",
        ),
    )
    made.add_argument("shards", help="Folder of shards that data_prep.convert wrote, or its URL.")
    made.add_argument(
        "--model_name",
        required=True,
        metavar="DIR|NAME",
        help="The teacher: an exported folder, or a sentence-transformers model.",
    )
    made.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="Folder for what is mined: new, empty, or with an unfinished run of the same data.",
    )
    made.add_argument("--subset_name", nargs="+", default=["all"], metavar="NAME", help="Subsets to mine.")
    made.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # set by the launcher
    _add_rule_flags(made)
    _add_speed_flags(made)
    return made


def _add_rule_flags(made: AnyParser) -> None:
    group = made.add_argument_group("Rules", "What is a hard negative, and what is a cluster.")
    group.add_argument(
        "--skip_ranks",
        nargs="+",
        default=[],
        metavar="[NAME=]N",
        help="Skip the N nearest targets as likely false negatives: N for all subsets, or META_TASK=N or SUBSET=N. If "
        "not given: B3's 30 for retrieval and grounding, 70 for vqa, 0 for classification, of 100 candidates; a subset "
        "with fewer other targets skips the same share.",
    )
    group.add_argument(
        "--margin",
        type=float,
        help="Treat targets that score above the positive's score minus this as false negatives. If not given: no such "
        "rule.",
    )
    group.add_argument(
        "--num_negatives", type=not_negative, default=NUM_NEGATIVES, help="Number of hard negatives per row."
    )
    group.add_argument(
        "--num_candidates", type=positive, default=NUM_CANDIDATES, help="Number of nearest targets examined per query."
    )
    group.add_argument(
        "--cluster_size", type=not_negative, default=CLUSTER_SIZE, help="Rows per cluster; 0: no clusters."
    )
    group.add_argument(
        "--cluster_method",
        choices=CLUSTER_METHODS,
        help=f"How the graph of hard pairs is cut. If not given: {METIS}, which needs pymetis.",
    )


def _add_speed_flags(made: AnyParser) -> None:
    group = made.add_argument_group("Encoding", "How the teacher encodes, and where its vectors are kept.")
    group.add_argument(
        "--embeddings_dir",
        type=Path,
        metavar="DIR",
        help="Folder for vectors and ranks; give the same folder again to mine with different rules. If not given: "
        f"{EMBEDDINGS_FOLDER} in --output_dir.",
    )
    group.add_argument(
        "--batch_tokens",
        type=positive,
        help="Maximum number of tokens in a batch, padding included. If not given: 16,384, on a CPU 4,096.",
    )
    group.add_argument(
        "--dataloader_num_workers",
        type=not_negative,
        default=2,
        help="Processes per rank that decode images ahead; 0 decodes in the rank itself.",
    )


@dataclass(frozen=True)
class Setup:
    """The result of the preparation on rank 0, which all ranks use.

    Attributes:
        complete: Whether everything was mined before.
        store: The folder of the vectors.
        num_items, num_image_batches, digest: Properties of the encoding plan.
        blocks: The blocks of the plan that are still to be encoded.
        teacher: The model that scores.
    """

    complete: bool
    store: Path
    num_items: int
    num_image_batches: int
    digest: str
    blocks: tuple[int, ...]
    teacher: Teacher


class Miner:
    """The stages of a run; each skips what an earlier run has finished.

    Args:
        arguments: The parsed command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        if arguments.cluster_method and not arguments.cluster_size:
            raise InputError(f"--cluster_method {arguments.cluster_method}: no effect with --cluster_size 0")
        self.settings = MiningSettings(
            skip_ranks=SkipRanks.parse(arguments.skip_ranks),
            margin=arguments.margin,
            num_negatives=arguments.num_negatives,
            num_candidates=arguments.num_candidates,
            cluster_size=arguments.cluster_size,
            cluster_method=arguments.cluster_method or METIS,
        )
        self.settings.refuse_impossible()
        self.output = OutputFolder(arguments.output_dir)
        self.embeddings: Path = arguments.embeddings_dir or arguments.output_dir / EMBEDDINGS_FOLDER
        self.device = device_of_rank()
        self.batch_tokens: int = arguments.batch_tokens or default_batch_tokens(self.device)

    def run(self) -> None:
        """Runs all stages, on all ranks."""
        with host_ranks(), ExitStack() as lock:
            setup = on_first_rank(lambda: self.prepare(lock), Setup)
            shards = shards_of(self.arguments.shards, self.arguments.subset_name)
            if not setup.complete:
                items = ShardItems.find(shards)
                store = VectorStore(setup.store)
                plan = store.read_plan(setup.num_items, setup.num_image_batches, setup.digest)
                if setup.blocks:
                    on_every_rank(lambda: self.encode(setup, shards, items, plan), names_ranks=False)
                on_first_rank(lambda: _assemble(store, plan, setup.teacher))
                self.rank_and_choose(setup, items, plan)
            on_first_rank(lambda: self.finish(setup, shards))

    def prepare(self, lock: ExitStack) -> Setup:
        """Finds the items and their sizes; runs on rank 0.

        Raises:
            InputError: The shards, the teacher or the folder cannot be used.
        """
        self.output.refuse_shards(self.arguments.shards)
        shards = shards_of(self.arguments.shards, self.arguments.subset_name)
        self.settings.skip_ranks.refuse_unused(shards.subsets)
        folder = TeacherFolder.find(self.arguments.model_name)
        teacher = folder.record
        lock.enter_context(locked(self.output.root, "another data_prep.mine is writing here"))
        self.output.begin(MiningPlan(shards.fingerprint, shards.subsets, teacher, self.settings))
        store = VectorStore(store_folder(self.embeddings, teacher, shards, self.device, self.batch_tokens))
        if self.output.is_complete():
            return Setup(True, store.folder, 0, 0, "", (), teacher)
        items = ShardItems.find(shards)
        with store.writing(), progress_bar(len(items), "measure", "item") as progress:
            measured = measure(items, shards, folder.planning_inputs, store.folder, progress.update)
        plan = measured.plan(self.batch_tokens, teacher.digest)
        store.write_plan(plan)
        blocks = tuple(store.missing_blocks(plan))
        left = sum(len(plan.rows(batch)) for number in blocks for batch in plan.blocks()[number])
        print(
            f"{counted(len(shards.subsets), 'subset')}, {counted(sum(shards.num_samples.values()), 'pair')}, "
            f"{counted(len(plan.order), 'unique item')}, {left:,} of them to encode",
            flush=True,
        )
        return Setup(False, store.folder, len(items), plan.num_image_batches, plan.digest, blocks, teacher)

    def encode(self, setup: Setup, shards: ShardSet, items: ShardItems, plan: EncodingPlan) -> None:
        """Encodes this rank's share of the missing blocks, which are distributed by their tokens."""
        if not sys.stderr.isatty() or not is_first_rank():
            disable_progress_bar()  # transformers' progress bar over the weights, which is unreadable in a log file
        with still_running(f"loading {self.arguments.model_name}"):
            encode, inputs, ready = TeacherFolder.find(self.arguments.model_name).load(self.device)
        source = ShardItemSource(items, shards, plan, inputs)
        own = plan.distribute_blocks(setup.blocks, world_size())[own_rank()]
        workers = self.arguments.dataloader_num_workers
        with ready, torch.inference_mode():
            encode_blocks(encode, source, VectorStore(setup.store), own, self.device, workers)

    def rank_and_choose(self, setup: Setup, items: ShardItems, plan: EncodingPlan) -> None:
        """Ranks the targets of all subsets, then writes the subsets' files."""
        ranks = RankStore(setup.store / f"ranks-{self.settings.num_candidates}")
        vectors = VectorStore(setup.store).vectors()
        targets = {name: SubsetTargets.of(*plan.position[items.numbers[name]]) for name in items.subsets}
        todo = on_first_rank(lambda: [name for name in items.subsets if self.output.finished(name) is None], list[str])
        missing = on_first_rank(
            lambda: [(name, n) for name in todo for n in range(len(targets[name].blocks())) if not ranks.has(name, n)],
            list[tuple[str, int]],
        )
        unranked = sorted({name for name, _ in missing})
        own_share = slice(own_rank(), None, world_size())

        def gather() -> None:
            for name in unranked[own_share]:
                if not ranks.targets_file(name).is_file():
                    ranks.write_targets(name, vectors, targets[name].target)

        def rank() -> None:
            blocks = [(name, number, targets[name].blocks()[number]) for name, number in missing[own_share]]
            with progress_bar(sum(len(rows) for _, _, rows in blocks), "rank", "query") as progress:
                for name, number, rows in blocks:
                    part = slice(rows.start, rows.stop)
                    queries = unit_vectors(vectors, targets[name].query[part])
                    corpus, own = ranks.read_targets(name), targets[name].own[part]
                    found = rank_block(queries, corpus, own, self.settings.num_candidates, progress.update)
                    ranks.write(name, number, found)

        def choose() -> None:
            with progress_bar(len(todo[own_share]), "choose", "subset") as progress:
                for name in todo[own_share]:
                    settings = self.settings.of_subset(name, len(targets[name].target))
                    record = mine_subset(name, targets[name], ranks, vectors, settings, self.output.root)
                    self.output.finish_subset(name, record)
                    progress.update()

        on_every_rank(gather, names_ranks=False)
        on_every_rank(rank, names_ranks=False)
        on_first_rank(lambda: ranks.remove_targets(items.subsets))
        on_every_rank(choose, names_ranks=False)

    def finish(self, setup: Setup, shards: ShardSet) -> None:
        """Completes the folder and prints a summary; runs on rank 0."""
        if not setup.complete:
            records = {name: record for name in shards.subsets if (record := self.output.finished(name)) is not None}
            plan = MiningPlan(shards.fingerprint, shards.subsets, setup.teacher, self.settings)
            self.output.complete(plan, records)
        self.output.remove_parts(shards.subsets)
        mined = Mined.open(self.output.root, shards.fingerprint, shards.num_samples)
        print_report(mined, setup.store)


def store_folder(embeddings: Path, teacher: Teacher, shards: ShardSet, device: torch.device, batch_tokens: int) -> Path:
    """The folder for vectors and rankings; its name is a hash of everything that decides them."""
    key = repr((__version__, device.type, batch_tokens, teacher.digest, shards.fingerprint, shards.subsets))
    return embeddings / hashlib.sha256(key.encode()).hexdigest()[:_KEY_DIGITS]


def _assemble(store: VectorStore, plan: EncodingPlan, teacher: Teacher) -> None:
    """Joins the vectors of all blocks, and refuses a teacher whose vectors cannot rank."""
    store.assemble(plan)
    if problem := collapse(store.vectors()):
        raise InputError(f"{teacher.name}: {problem}; nothing can be mined with this teacher")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, then measures, encodes, ranks and chooses; any number of ranks writes the same files."""
    Miner(parser().parse_args(argv)).run()


if __name__ == "__main__":
    sys.exit(run_ranks_program(main))
