"""The shard format: webdataset tars, an index beside each for random access, one manifest over all."""

from vlm2vec.shards.reader import DamagedSampleError, ShardSet
from vlm2vec.shards.schema import Item, Sample, content_hash

__all__ = ["DamagedSampleError", "Item", "Sample", "ShardSet", "content_hash"]
