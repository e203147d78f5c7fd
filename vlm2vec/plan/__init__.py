"""Plan of a run before it is queued: memory of a rank, traffic, FLOPs and time of a step."""
