"""From an item (text, images) to the tensors of one encoder call."""
