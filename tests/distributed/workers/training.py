"""One rank of several training runs, one after the other, without the program's start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.train import run
from vlm2vec.training.flags.run import parse_arguments


def main(runs: Path) -> None:
    """Trains with each of a JSON file's lists of flags."""
    device = initialize_ranks(COLLECTIVE_SECONDS)
    for flags in json.loads(runs.read_text()):
        print(*flags, flush=True)
        run(parse_arguments(flags), device)
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
