"""Imports everything that a training run imports, so that forked ranks have it already."""

from __future__ import annotations

import gc

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # its import compiles for seconds
import peft
import torch
import transformers
from torch.utils import tensorboard

from vlm2vec import train

IMPORTED = (deepspeed, peft, torch, transformers, tensorboard, train)

# Ranks live for seconds, so the garbage collector need not scan the imported objects and copy their pages.
gc.collect()
gc.freeze()
