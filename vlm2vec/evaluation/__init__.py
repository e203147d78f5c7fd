"""Scores a model on datasets in MMEB-eval's layout: read, plan, encode, rank, aggregate."""
