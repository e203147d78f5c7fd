"""The miniature MMEB: its pictures, its tasks, and how they are laid out on disk."""
