"""The miniature MMEB: its images, its tasks, and their layout on disk."""
