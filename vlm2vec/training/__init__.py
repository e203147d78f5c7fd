"""A training run: arguments, engine, data, loop, checkpoints, metrics; `vlm2vec.train` is its program."""
