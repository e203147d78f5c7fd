"""Readers of JSON and parquet files from untrusted sources, with all bounds checked."""
