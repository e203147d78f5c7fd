"""The shard format: webdataset tars, an index beside each for random access, one manifest over all."""

from vlm2vec.shards.reader import ShardSet
from vlm2vec.shards.schema import Item, Sample, content_hash

__all__ = ["Item", "Sample", "ShardSet", "content_hash"]
