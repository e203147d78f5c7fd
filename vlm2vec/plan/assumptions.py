"""Where a run is to run and what its batches hold: what a plan has to assume."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.preflight.graph_memory import LEFT_FREE


@dataclass(frozen=True)
class Hardware:
    """Where the run is to run, and what is assumed of it.

    Attributes:
        gpus: Of a node.
        nodes: How many.
        gpu_memory: Bytes of a GPU.
        peak_flops: FLOP/s of a GPU.
        utilization: The share of it that is reached.
        gpu_bandwidth: Bytes a second between GPUs of a node, each way and GPU.
        node_bandwidth: Bytes a second between nodes, each way and node.
    """

    gpus: int
    nodes: int
    gpu_memory: float
    peak_flops: float
    utilization: float
    gpu_bandwidth: float
    node_bandwidth: float

    @property
    def num_ranks(self) -> int:
        """One a GPU."""
        return self.gpus * self.nodes

    @property
    def usable_memory(self) -> float:
        """A tenth stays free for fragmentation and what libraries take, as in `--keep_graphs auto`."""
        return (1 - LEFT_FREE) * self.gpu_memory

    @property
    def ring_bandwidth(self) -> float:
        """Of a ring through all ranks: its slowest link, which is a node's where there are several."""
        return self.gpu_bandwidth if self.nodes == 1 else min(self.gpu_bandwidth, self.node_bandwidth)


@dataclass(frozen=True)
class Workload:
    """What a global batch is assumed to hold.

    Attributes:
        images_per_pair: Items of a pair that have an image, 0 to 2.
        text_tokens: Tokens of an item's text.
        image_size: Width and height in pixels of every image; None: what the model family plans with.
    """

    images_per_pair: float
    text_tokens: int
    image_size: tuple[int, int] | None = None
