"""Prints a summary of a finished run of mining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm2vec.messages.words import counted
from vlm2vec.mined.format import Mined


def print_report(mined: Mined, embeddings: Path) -> None:
    """Prints one line per subset, warnings, and where the files are."""
    for name, record in mined.subsets.items():
        summary, settings = record.summary, record.settings
        parts = [
            f"{counted(record.num_samples, 'row')}, {counted(summary['num_targets'], 'target')}",
            f"{counted(record.num_negatives, 'negative')} (mean cosine {_cosine(summary['mean_negative_score'])}, "
            f"positives {_cosine(summary['mean_positive_score'])})",
            f"{counted(record.num_false_negatives, 'false negative')}",
            f"{summary['num_skipped']:,} of {counted(summary['num_candidates'], 'candidate')} skipped by rank",
        ]
        if settings["cluster_size"]:
            inside, random = (summary[f"similarity_{name}"] for name in ("in_clusters", "of_random_rows"))
            parts.append(
                f"{counted(record.num_clusters, 'cluster')} (mean cosine {_cosine(inside)}, random rows "
                f"{_cosine(random)}), {summary['rows_left_over']} left over"
            )
        print(f"{name}: {'; '.join(parts)}", flush=True)
        margin = "" if settings["margin"] is None else f", --margin {settings['margin']:g}"
        without = summary["rows_without_negatives"]
        if without and settings["num_negatives"]:
            print(
                f"warning: {name}: {without:,} of {counted(record.num_samples, 'row')} without a hard negative "
                f"({counted(summary['num_targets'] - 1, 'other target')}, --skip_ranks {settings['skip_ranks']}"
                f"{margin})",
                flush=True,
            )
    print(f"{mined.root}: complete, fingerprint {mined.fingerprint}; vectors are kept in {embeddings}", flush=True)


def _cosine(value: Any) -> str:
    return "none" if value is None else f"{value:.3f}"
