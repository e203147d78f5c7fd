"""Checks before the first step: ranks match, the largest chunk fits, all ranks share a writable output folder."""
