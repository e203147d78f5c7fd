"""Programs that turn MMEB-train into WebDataset shards (run from a clone)."""
