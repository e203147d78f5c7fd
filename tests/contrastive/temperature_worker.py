"""One rank of two that learn a temperature; prints the values after each step.

Rank 0 computes all rows but the last in the first step and none in the second, so the shares differ as they can.
"""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from tests.contrastive.test_temperature import BATCH, LEARNING_RATE, batch_of_step
from vlm2vec.contrastive import ContrastiveLoss
from vlm2vec.contrastive.temperature import LearnedTemperature


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    is_first = dist.get_rank() == 0
    temperature = LearnedTemperature(initial=0.1)
    loss_fn = ContrastiveLoss(temperature, block_rows=2)
    for step, border in enumerate((BATCH - 1, 0, 4)):
        representations, pairs = batch_of_step(step)
        value, _ = loss_fn(representations, pairs, range(border) if is_first else range(border, BATCH))
        value.backward()
        temperature.step(LEARNING_RATE)
    print("state", json.dumps(temperature.state_dict()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
