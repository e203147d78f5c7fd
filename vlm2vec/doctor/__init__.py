"""Is this machine, and are the nodes of a hostfile, ready for a run: `python -m vlm2vec.doctor`."""
