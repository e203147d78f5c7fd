"""Checks before the first step: do the ranks match, does the largest chunk fit, can the output folder be written."""
