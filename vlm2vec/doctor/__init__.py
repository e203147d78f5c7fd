"""Checks whether this machine and the nodes of a hostfile are ready for a run: `python -m vlm2vec.doctor`."""
