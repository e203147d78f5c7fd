"""Where a run goes on: which checkpoint, and whether the arguments still mean the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.ranks import on_first_rank
from vlm2vec.training.checkpoints.record import RunRecord, checkpoints_of, find_checkpoint, read_whole
from vlm2vec.training.checkpoints.writer import remove_unfinished
from vlm2vec.training.flags.checkpoint import AUTO, NONE
from vlm2vec.training.flags.run import POLICIES, RunArguments, argument_defaults

_CHUNKS = ("chunk_tokens", "no_grad_chunk_tokens", "keep_graphs", "gc_q_chunk_size", "gc_p_chunk_size")
# Differences that are no argument's: other shards behind the same flags, another order of the same samples.
DATA, ORDER = "dataset_name", "order"
_BATCH = ("global_batch_size", "per_device_train_batch_size")


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run goes on.

    Attributes:
        checkpoint: Its folder.
        record: Its record.
        is_elastic: Whether other ranks or another ZeRO stage wrote it, so that its state must be dealt anew.
    """

    checkpoint: Path
    record: RunRecord
    is_elastic: bool

    def kept_graphs(self, arguments: RunArguments) -> int | None:
        """How many graphs a step kept, if ranks and chunks are as they were."""
        before, now = self.record.arguments, arguments.as_dict()
        is_same = not self.is_elastic and all(before.get(name) == now[name] for name in _CHUNKS)
        return self.record.keep_graphs if is_same else None


@dataclass(frozen=True)
class Partitioning:
    """What may differ between the runs before and after a resume."""

    num_ranks: int
    zero_stage: int


def agree_on_resume(
    arguments: RunArguments, cluster: Partitioning, data: Mapping[str, str], message: Callable[[str], None] = print
) -> ResumePoint | None:
    """`resume_point` of the first rank, for all; also clears away what a killed run left unfinished."""

    def find() -> ResumePoint | None:
        point = resume_point(arguments, cluster, data, message)
        remove_unfinished(Path(arguments.training.output_dir))
        return point

    return on_first_rank(find, ResumePoint | None)


def resume_point(
    arguments: RunArguments, cluster: Partitioning, data: Mapping[str, str], message: Callable[[str], None]
) -> ResumePoint | None:
    """Finds the checkpoint that `--resume` means and compares its run with this one.

    Args:
        arguments: Of this run.
        cluster: Of this run.
        data: As in `RunRecord`, of this run.
        message: Takes warnings.

    Returns:
        None for a run from the start.

    Raises:
        InputError: No such checkpoint, a torn one, or one of another run; the message names the remedy.
    """
    training = arguments.training
    unknown = set(training.allow_changed) - set(argument_defaults()) - {ORDER}
    if unknown:
        raise InputError(f"--allow_changed {min(unknown)}: no such argument (--help lists all)")
    output_dir = Path(training.output_dir)
    existing = list(checkpoints_of(output_dir))
    if training.resume == NONE:
        if existing:
            raise InputError(
                f"--output_dir {output_dir}: holds another run's checkpoints; go on with it by --resume {AUTO}, remove "
                "it or choose another"
            )
        return None
    if training.resume == AUTO:
        found = newest_whole(existing, message)
        if found is None:
            return None
    else:
        path = find_checkpoint(Path(training.resume))
        found = path, read_whole(path)
    checkpoint, record = found
    later = [path.name for step, path in existing if step > record.step]
    if training.resume != AUTO and later:
        raise InputError(
            f"--resume {training.resume}: {output_dir} holds later checkpoints ({', '.join(later)}), which the run "
            "would leave behind; remove them or choose another --output_dir"
        )
    refuse_changes(checkpoint, changes(record, arguments, cluster.num_ranks, data), training.allow_changed)
    return ResumePoint(checkpoint, record, cluster != Partitioning(record.num_ranks, record.zero_stage))


def newest_whole(
    checkpoints: Iterable[tuple[int, Path]], message: Callable[[str], None]
) -> tuple[Path, RunRecord] | None:
    """The newest checkpoint of which nothing is missing; torn ones are skipped with a warning."""
    for _, path in checkpoints:
        try:
            return path, read_whole(path)
        except InputError as error:
            message(f"warning: --resume {AUTO} skips {path.name}: {error}")
    return None


def changes(record: RunRecord, arguments: RunArguments, num_ranks: int, data: Mapping[str, str]) -> dict[str, str]:
    """What makes this run another one than the checkpoint's: by name, what was and what is."""
    before = {**argument_defaults(), **record.arguments}
    found = {
        name: f"{before.get(name)} -> {now}"
        for name, now in arguments.as_dict().items()
        if POLICIES[name].is_compared_on_resume and _plain(before.get(name)) != _plain(now)
    }
    old_batch = before["global_batch_size"] or before["per_device_train_batch_size"] * record.num_ranks
    new_batch = arguments.global_batch_size(num_ranks)
    if old_batch != new_batch:
        name = _BATCH[arguments.training.global_batch_size is None]
        found[name] = f"a global batch of {old_batch} pairs -> {new_batch} (--global_batch_size {old_batch} keeps it)"
    if record.data["shards"] != data["shards"]:
        found[DATA] = "the shards have another content (manifest's fingerprint)"
    if not found and record.data["order"] != data["order"]:
        found[ORDER] = "the samples come in another order"
    return found


def refuse_changes(checkpoint: Path, found: Mapping[str, str], allowed: Iterable[str]) -> None:
    """Refuses differences that were not allowed by name.

    Raises:
        InputError: With the list of differences.
    """
    refused = {name: text for name, text in found.items() if name not in allowed}
    if refused:
        listed = "; ".join(f"{name}: {text}" for name, text in refused.items())
        raise InputError(
            f"{checkpoint}: is of a run that computes something else ({listed}); run it as it was, or say "
            f"--allow_changed {' '.join(refused)}"
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
