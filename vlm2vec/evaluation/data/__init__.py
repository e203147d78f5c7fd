"""Evaluation data: dataset selection, rows, distinct items, image files, warnings."""
