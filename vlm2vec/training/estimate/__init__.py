"""What a run will take, found on the meta device: no weights, no accelerator."""
