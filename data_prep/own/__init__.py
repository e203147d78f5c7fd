"""Reads the user's own pairs row by row for the converter: JSONL, CSV, parquet and Hugging Face datasets."""
