"""Processors of the Qwen-VL families: from texts and images to the arguments of the models' forward."""
