"""What a teacher model has mined from shards: hard negatives, false negatives, clusters of mutually hard pairs."""
