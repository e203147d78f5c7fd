"""Sidecar of mining: a teacher model's hard negatives, false negatives, scores and clusters for shards."""
