"""Estimates a run before it is queued: memory per rank; traffic, FLOPs and time per step."""
