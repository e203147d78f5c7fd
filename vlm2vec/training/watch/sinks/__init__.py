"""Where a run's metrics go: one interface, one file per sink."""
