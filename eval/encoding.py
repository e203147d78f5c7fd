"""Encodes the missing blocks of a store on all ranks, for every program that scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval.mmeb_flags import EncoderArguments
from eval.model import ModelFolders, load_encoder
from vlm2vec.dora import kept_norms
from vlm2vec.evaluation.encoding import BatchSource, encode_blocks
from vlm2vec.evaluation.store import EvalStore
from vlm2vec.images.folder import ImageFolder
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.messages.progress import still_running
from vlm2vec.ranks import own_rank, world_size


def encode_missing(
    folders: ModelFolders,
    arguments: EncoderArguments,
    store: EvalStore,
    blocks: Sequence[int],
    images: ImageFolder,
    device: torch.device,
    num_workers: int,
) -> None:
    """Encodes this rank's share of the missing blocks, which are distributed by their tokens.

    Args:
        folders: The model's folders.
        arguments: The model's settings, complete.
        store: Contains the plan, and receives the vectors.
        blocks: The missing blocks, the same on all ranks.
        images: Opens the items' images.
        device: The device on which the encoder runs.
        num_workers: Number of processes that decode images in advance.

    Raises:
        InputError: The model cannot be loaded, or an image can no longer be decoded.
    """
    with still_running(f"loading {folders.base}"):
        encoder = load_encoder(folders, arguments, device)
    plan = store.plan()
    inputs = ItemEncoderInputs(encoder.processor, arguments.max_len, encoder.base.dtype)
    source = BatchSource(store.items(), plan, images, inputs)
    own = plan.distribute_blocks(blocks, world_size())[own_rank()]
    with kept_norms(encoder):
        encode_blocks(encoder, source, store, own, device, num_workers)
