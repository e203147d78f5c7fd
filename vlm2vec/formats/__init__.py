"""File formats that others may have written: JSON and parquet, read with every bound checked."""
