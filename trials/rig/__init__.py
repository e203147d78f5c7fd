"""What trials and tests share: starting ranks, tiny models, hand-made data, damage to files."""
