"""Chooses the checkpoint that a run resumes from, and refuses arguments that would change the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.ranks import on_first_rank
from vlm2vec.training.checkpoints.record import RunRecord, checkpoints_of, find_checkpoint, read_whole
from vlm2vec.training.checkpoints.restore import FromStart, ResumePoint, StartPoint
from vlm2vec.training.checkpoints.writer import remove_unfinished
from vlm2vec.training.flags.checkpoint import AUTO
from vlm2vec.training.flags.model import FORMER_TARGETS
from vlm2vec.training.flags.run import POLICIES, RunSettings, argument_defaults
from vlm2vec.training.settings import ClusterSettings

# Names of differences that are not a single flag's: different shards behind the same flags, a different sidecar, or a
# different order of the same samples.
DATA, MINED, ORDER = "dataset_name", "mined", "order"
_BATCH = ("global_batch_size", "per_device_train_batch_size")


def agree_on_resume(
    settings: RunSettings, data: Mapping[str, str], message: Callable[[str], None] = print
) -> StartPoint:
    """Runs `resume_point` on the first rank, for all ranks; also removes what a killed run left unfinished."""

    def find() -> ResumePoint | None:
        point = resume_point(settings, data, message)
        remove_unfinished(settings.checkpoints.output_dir)
        return point

    return on_first_rank(find, ResumePoint | None) or FromStart()


def resume_point(settings: RunSettings, data: Mapping[str, str], message: Callable[[str], None]) -> ResumePoint | None:
    """Finds the checkpoint that `--resume` names and compares its run with this one.

    Args:
        settings: Settings of this run.
        data: This run's data, see `RunRecord`.
        message: Receives warnings.

    Returns:
        None for a run from the beginning.

    Raises:
        InputError: There is no such checkpoint, it is incomplete, or it is of a different run; the message names the
            remedy.
    """
    checkpoints, cluster = settings.checkpoints, settings.cluster
    unknown = set(checkpoints.allow_changed) - set(argument_defaults()) - {ORDER}
    if unknown:
        raise InputError(f"--allow_changed {min(unknown)}: no such argument; --help lists all")
    output_dir, resume = checkpoints.output_dir, checkpoints.resume
    existing = list(checkpoints_of(output_dir))
    if resume is None:
        if existing:
            raise InputError(
                f"--output_dir {output_dir}: holds another run's checkpoints; resume that run with --resume {AUTO}, "
                "remove the folder, or choose a different one"
            )
        return None
    if resume == AUTO:
        found = newest_whole(existing, message)
        if found is None:
            return None
    else:
        path = find_checkpoint(Path(resume))
        found = path, read_whole(path)
    checkpoint, record = found
    later = [path.name for step, path in existing if step > record.step]
    if resume != AUTO and later:
        raise InputError(
            f"--resume {resume}: {output_dir} holds later checkpoints ({', '.join(later)}), which would mix with this "
            "run's; remove them or choose a different --output_dir"
        )
    refuse_changes(checkpoint, changes(record, settings.flags, cluster, data), checkpoints.allow_changed)
    return ResumePoint(
        checkpoint, record, (cluster.num_ranks, cluster.zero_stage) != (record.num_ranks, record.zero_stage)
    )


def newest_whole(
    checkpoints: Iterable[tuple[int, Path]], message: Callable[[str], None]
) -> tuple[Path, RunRecord] | None:
    """The newest complete checkpoint; incomplete ones are skipped with a warning."""
    for _, path in checkpoints:
        try:
            return path, read_whole(path)
        except InputError as error:
            message(f"warning: --resume {AUTO} skips {path.name}: {error}")
    return None


def changes(
    record: RunRecord, flags: Mapping[str, Any], cluster: ClusterSettings, data: Mapping[str, str]
) -> dict[str, str]:
    """Differences between this run and the checkpoint's: by name, the old and the new value."""
    before = {**argument_defaults(), **record.arguments}
    if not before["lora"] and before["lora_target_modules"] == FORMER_TARGETS:
        before["lora_target_modules"] = None
    found = {
        name: f"{before.get(name)} -> {now}"
        for name, now in flags.items()
        if POLICIES[name].is_compared_on_resume and _plain(before.get(name)) != _plain(now)
    }
    old_batch = before["global_batch_size"] or before["per_device_train_batch_size"] * record.num_ranks
    new_batch = cluster.global_batch_size
    if old_batch != new_batch:
        name = _BATCH[flags["global_batch_size"] is None]
        found[name] = f"a global batch of {old_batch} pairs -> {new_batch} (--global_batch_size {old_batch} keeps it)"
    if record.data["shards"] != data["shards"]:
        found[DATA] = "the shards' content differs (fingerprint of the manifest)"
    if record.data.get(MINED) != data.get(MINED):
        found[MINED] = "the mined sidecar's content differs (fingerprint of mined.json)"
    if not found and record.data["order"] != data["order"]:
        found[ORDER] = "the samples come in a different order"
    return found


def refuse_changes(checkpoint: Path, found: Mapping[str, str], allowed: Iterable[str]) -> None:
    """Refuses differences that `--allow_changed` does not name.

    Raises:
        InputError: There are such differences; the message lists them.
    """
    refused = {name: text for name, text in found.items() if name not in allowed}
    if refused:
        listed = "; ".join(f"{name}: {text}" for name, text in refused.items())
        raise InputError(
            f"{checkpoint}: arguments differ from the checkpoint's ({listed}); restore them, or pass "
            f"--allow_changed {' '.join(refused)}"
        )


def _plain(value: Any) -> Any:
    """A value as JSON returns it."""
    return list(value) if isinstance(value, tuple) else value
