"""Helpers for trials and tests: starting ranks, tiny models, hand-made data, damaging files."""
