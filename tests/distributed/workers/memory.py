"""One rank that trains with given flags and prints its peak resident memory in MiB."""

from __future__ import annotations

import ctypes
import resource
import sys

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.train import run
from vlm2vec.training.flags.run import parse_arguments

M_MMAP_THRESHOLD = -3  # mallopt(3)


def main() -> None:
    # Freed crops go back to the system at once, so that the peak shows what is alive and not the allocator's leftovers.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536) == 1
    arguments = parse_arguments(sys.argv[1:])
    run(arguments, initialize_ranks(COLLECTIVE_SECONDS))
    print("peak MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    close_ranks()


if __name__ == "__main__":
    main()
