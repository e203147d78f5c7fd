"""Parts of an installed package besides the library: console scripts, and recipes and engine files found by name."""
