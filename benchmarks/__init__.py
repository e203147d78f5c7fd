"""Programs that measure: each prints figures beside a baseline of the same run."""
