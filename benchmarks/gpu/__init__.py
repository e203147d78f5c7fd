"""Full-size Phi-3.5-V with random weights on one GPU: ceilings, exactness, training steps, memory."""
