"""Pairs of one's own: JSONL, CSV, parquet and Hugging Face data sets, read row by row for the converter."""
