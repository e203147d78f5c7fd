"""The miniature MMEB: its images, its tasks, and how they are laid out on disk."""
