"""The shard format: webdataset tars, an index beside each for random access, one manifest over all."""

from vlm2vec.shards.reader import DamagedSampleError, ShardSet
from vlm2vec.shards.remote import Cache, is_url
from vlm2vec.shards.schema import Item, Sample, content_hash

__all__ = ["Cache", "DamagedSampleError", "Item", "Sample", "ShardSet", "content_hash", "is_url"]
