"""What a training run imports on its way; a forked rank finds it there."""

from __future__ import annotations

import gc

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # compiles something when it is imported, for seconds
import peft
import torch
import transformers
from torch.utils import tensorboard

from vlm2vec import train

IMPORTED = (deepspeed, peft, torch, transformers, tensorboard, train)

# Ranks live for seconds: their collector need not look at what was imported again and again, nor copy its pages.
gc.collect()
gc.freeze()
