"""The parts of `data_prep.mine`, in the order in which they run."""
