"""Checkpoints: written, found, resumed, restored on different ranks or a different ZeRO stage."""
