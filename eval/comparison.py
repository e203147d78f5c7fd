"""Compares the runs of a report: tables and notes, with one run as the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from eval.cells import APART_NOTE, DIFFERENCE_NOTE, UNCLEAR_NOTE, ScoreTable, compared
from eval.invocation import Invocation, describe_calls
from eval.retrieval_table import (
    RetrievalRun,
    describe_retrieval,
    groups_table,
    retrieval_metrics_table,
    retrieval_remarks,
    retrieval_table,
)
from eval.table import Run, describe_run, metrics_table, paper_table, remarks, score_table


@dataclass(frozen=True)
class Comparison:
    """The runs of a report.

    Attributes:
        runs: Scores of `eval.mmeb`.
        retrievals: Scores of `eval.retrieval`.
        videos: Scores of `eval.mmeb` on clips.
        baseline: Heading of the run that the others are compared with.
    """

    runs: Sequence[Run]
    retrievals: Sequence[RetrievalRun] = ()
    videos: Sequence[Run] = ()
    baseline: str = ""

    def scores(self) -> ScoreTable:
        """Every dataset's scores; `runs` must not be empty."""
        return compared(score_table(self.runs, self._place(self.runs)), _labels(self.runs), self._place(self.runs))

    def summary(self) -> ScoreTable:
        """The means of `scores`."""
        return self.scores().means("Mean Precision@1 in %")

    def collections(self) -> ScoreTable:
        """Every collection's scores; `retrievals` must not be empty."""
        place = self._place(self.retrievals)
        return compared(retrieval_table(self.retrievals, place), _labels(self.retrievals), place)

    def clips(self) -> ScoreTable:
        """Every video dataset's scores; `videos` must not be empty."""
        place = self._place(self.videos)
        table = replace(score_table(self.videos, place), title="Precision@1 in %, video")
        return compared(table, _labels(self.videos), place)

    def tables(self) -> list[ScoreTable]:
        """All tables."""
        tables: list[ScoreTable | None] = [groups_table(self.runs, self.retrievals, self.videos)]
        if self.runs:
            tables += [self.scores(), paper_table(self.runs), metrics_table(self.runs)]
        if self.retrievals:
            tables += [self.collections(), retrieval_metrics_table(self.retrievals)]
        if self.videos:
            tables.append(self.clips())
        return [table for table in tables if table is not None]

    def described(self) -> list[tuple[str, Sequence[Invocation]]]:
        """For every run a line, and the calls that scored it."""
        return [
            *((describe_run(run), run.calls) for run in self.runs),
            *((describe_retrieval(run), run.calls) for run in self.retrievals),
        ]

    def remarks(self) -> list[str]:
        """Notes that a reader of the tables needs."""
        lines = [*remarks(self.runs)] if self.runs else []
        lines += retrieval_remarks(self.retrievals)
        kinds: list[tuple[Sequence[Run | RetrievalRun], Callable[[], ScoreTable]]] = [
            (self.runs, self.scores),
            (self.retrievals, self.collections),
            (self.videos, self.clips),
        ]
        for runs, table in kinds:
            if len(runs) > 1:
                notes = _difference_notes(table(), runs[self._place(runs)].label)
                lines += [note for note in notes if note not in lines]
        return lines

    @property
    def has_warnings(self) -> bool:
        """Whether a program warned about the data or the model of a run."""
        return any(run.summary["warnings"] for run in [*self.runs, *self.videos]) or bool(
            retrieval_remarks(self.retrievals)
        )

    def notes(self) -> list[str]:
        """The runs, the calls that scored them, and `remarks`."""
        lines = [line for about, calls in self.described() for line in (about, *describe_calls(calls))]
        return lines + self.remarks()

    def _place(self, runs: Sequence[Run | RetrievalRun]) -> int:
        """The baseline's place; 0 if it has no such scores."""
        labels = _labels(runs)
        return labels.index(self.baseline) if self.baseline in labels else 0


def _difference_notes(table: ScoreTable, baseline: str) -> list[str]:
    """What a reader of a table with differences needs."""
    rows = [row for section in table.sections for row in section]
    notes = [DIFFERENCE_NOTE]
    if any(row.apart for row in rows):
        notes.append(APART_NOTE)
    if any(row.unclear for row in rows):
        notes.append(UNCLEAR_NOTE)
    return [note.format(baseline=baseline) for note in notes]


def _labels(runs: Sequence[Run | RetrievalRun]) -> list[str]:
    return [run.label for run in runs]
