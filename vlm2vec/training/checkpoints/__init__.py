"""Checkpoints: writing, finding, resuming, also on a different number of ranks or ZeRO stage."""
