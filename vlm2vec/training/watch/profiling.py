"""Profiles of chosen steps: torch.profiler's trace, DeepSpeed's count of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import profile

from vlm2vec.ranks import own_rank
from vlm2vec.training.settings import WatchSettings

FOLDER = "profile"


class StepProfiles:
    """Profiles the steps that the arguments name; every rank writes its own trace, the first one the FLOPs.

    Used as a context: a run that ends in the middle of a profile writes what there is.

    Args:
        settings: Which steps.
        output_dir: The run's folder.
        engine: The DeepSpeed engine.
        message: Takes a line for whoever watches.
    """

    def __init__(self, settings: WatchSettings, output_dir: Path, engine: Any, message: Callable[[str], None]) -> None:
        self._steps = settings.profile_steps
        self._flops_step = settings.flops_profile_step
        self._folder = output_dir / FOLDER
        self._engine = engine
        self._message = message
        self._running: dict[str, Callable[[], None]] = {}

    def __enter__(self) -> StepProfiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in list(self._running):
            self._running.pop(name)()

    def before(self, step: int) -> None:
        """Before a step, counted from 1; again for one that runs again."""
        if self._steps and step == self._steps[0] and "trace" not in self._running:
            self._running["trace"] = self._trace()
        if step == self._flops_step and "flops" not in self._running and own_rank() == 0:
            self._running["flops"] = self._flops(step)

    def after(self, step: int) -> None:
        """After it."""
        if self._steps and step == self._steps[-1] and "trace" in self._running:
            self._running.pop("trace")()
        if step == self._flops_step and "flops" in self._running:
            self._running.pop("flops")()

    def _trace(self) -> Callable[[], None]:
        """Starts a trace; returns what ends and writes it."""
        activities = list(torch.profiler.supported_activities())  # type: ignore[no-untyped-call]
        tracing = ExitStack()
        trace = tracing.enter_context(profile(activities=activities))
        path = self._folder / f"rank{own_rank()}_steps{self._steps[0]}-{self._steps[-1]}.pt.trace.json"

        def end() -> None:
            tracing.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(path))
            self._message(f"profile: {path} and other ranks' beside it; open them at https://ui.perfetto.dev")

        return end

    def _flops(self, step: int) -> Callable[[], None]:
        """Starts counting; the engine's own way (`flops_profiler` in its file) forgets all forward passes but one."""
        from deepspeed.profiling.flops_profiler import FlopsProfiler

        profiler = FlopsProfiler(self._engine.module)
        profiler.start_profile()
        path = self._folder / f"flops_step{step}.txt"

        def end() -> None:
            profiler.stop_profile()
            profiler.print_model_profile(profile_step=step, output_file=str(path))
            profiler.end_profile()
            self._message(f"profile: {path}, all forward passes of a step on the first rank")

        return end


def summarise_communication(engine: Any) -> None:
    """Prints what the engine file's `comms_logger` has counted; all ranks call it."""
    if engine.config.get("comms_logger", {}).get("enabled"):
        import deepspeed.comm

        deepspeed.comm.log_summary()
