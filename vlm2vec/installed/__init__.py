"""What an installed package has beside its modules: console scripts, and recipes and engine files found by name."""
