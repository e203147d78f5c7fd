"""One rank that trains as the flags say and prints its peak resident memory in MiB."""

from __future__ import annotations

import resource
import sys

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.train import run
from vlm2vec.training.flags.run import parse_arguments


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    run(arguments, initialize_ranks(COLLECTIVE_SECONDS))
    print("peak MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    close_ranks()


if __name__ == "__main__":
    main()
