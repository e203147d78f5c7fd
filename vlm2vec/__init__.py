"""VLM2Vec training on DeepSpeed: exact cached contrastive steps under ZeRO-1/2/3."""
