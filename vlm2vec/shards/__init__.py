"""The shard format: WebDataset tars, an index next to each for random access, one manifest for all."""

from vlm2vec.shards.reader import DamagedSampleError, ShardSet
from vlm2vec.shards.remote import Cache, is_url
from vlm2vec.shards.schema import Item, Sample, content_hash

__all__ = ["Cache", "DamagedSampleError", "Item", "Sample", "ShardSet", "content_hash", "is_url"]
