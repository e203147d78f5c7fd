"""Programs that score a model on MMEB-eval (run from a clone)."""
