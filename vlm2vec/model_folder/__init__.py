"""Reads, checks and writes the files of a saved model: weights, adapter, settings."""
