"""What a run is told: one file per group of flags, recipes, refusals, the engine file."""
