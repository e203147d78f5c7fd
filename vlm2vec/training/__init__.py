"""A training run: flags, settings, start, run, loop, checkpoints, metrics; `vlm2vec.train` is its program."""
