"""What a plan must assume: the hardware and the contents of a global batch."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.preflight.graph_memory import LEFT_FREE


@dataclass(frozen=True)
class Hardware:
    """The hardware of the run, and its assumed speeds.

    Attributes:
        gpus: GPUs per node.
        nodes: Number of nodes.
        gpu_memory: Bytes per GPU.
        peak_flops: Peak FLOP/s per GPU.
        utilization: Share of the peak that is reached.
        gpu_bandwidth: Bytes per second between GPUs of a node, per GPU and direction.
        node_bandwidth: Bytes per second between nodes, per node and direction.
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
        """One rank per GPU."""
        return self.gpus * self.nodes

    @property
    def usable_memory(self) -> float:
        """Bytes per GPU; a tenth stays free for fragmentation and libraries, as in `--keep_graphs auto`."""
        return (1 - LEFT_FREE) * self.gpu_memory

    @property
    def ring_bandwidth(self) -> float:
        """Bytes per second of a ring through all ranks: its slowest link, between nodes if there are several."""
        return self.gpu_bandwidth if self.nodes == 1 else min(self.gpu_bandwidth, self.node_bandwidth)


@dataclass(frozen=True)
class Workload:
    """What a global batch is assumed to hold.

    Attributes:
        images_per_pair: Items of a pair that have an image, 0 to 2.
        text_tokens: Tokens of an item's text.
        image_size: Width and height of every image in pixels; None: the model family's planning size.
        images_per_item: Number of images of an item that has any.
        hard_negatives_per_row: Hard negatives that the data have per row, if the run uses them.
    """

    images_per_pair: float
    text_tokens: int
    image_size: tuple[int, int] | None = None
    images_per_item: int = 1
    hard_negatives_per_row: int = 1
