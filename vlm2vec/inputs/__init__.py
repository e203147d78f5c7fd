"""Turns items (text and images) into the tensors of encoder calls."""
