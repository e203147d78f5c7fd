"""Programs that measure speed and memory; each prints its numbers beside a baseline from the same run."""
