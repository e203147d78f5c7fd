"""From an item, a text and images, to the arguments of the models' forward."""
