"""What a forward and backward pass over items takes, counted on the meta device."""

from __future__ import annotations

import warnings

import torch

from vlm2vec.encoder import VLM2Vec
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.passes import ChunkShape
from vlm2vec.training.settings import EncoderSettings
from vlm2vec.training.watch.mfu import ModelFlops, known_peak_tflops

_TERA = 1e12
_TEXT_WIDTHS = (64, 128)


def model_flops(
    settings: EncoderSettings, peak_tflops: float | None, encoder: VLM2Vec, device: torch.device
) -> ModelFlops | None:
    """What MFU of a run is counted by; None where the peak is neither given nor known. Takes some seconds."""
    peak = peak_tflops
    if peak is None and settings.precision.compute is torch.bfloat16:
        peak = known_peak_tflops(device)
    if peak is None:
        return None
    with warnings.catch_warnings():
        # transformers 5.23 warns of a name that older versions need.
        warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.* is deprecated", category=FutureWarning)
        model = MetaModel(encoder.base.config, settings, encoder.processor.image_limits["num_crops"])
        return counted_flops(model, peak * _TERA)


def counted_flops(model: MetaModel, peak_flops: float) -> ModelFlops:
    """Counted on the meta device, adapters included; what only dropout costs is not.

    With dropout on its input, DoRA multiplies with the frozen weights twice, and the second product is no use of its
    own.
    """
    model = model.without_dropout()

    def flops(width: int, crops: int) -> float:
        # One row more: what a call takes whatever it holds, as DoRA's norms of the weights, is no item's.
        one, two = (sum(model.cost(ChunkShape(rows, width, crops), True).flops) for rows in (1, 2))
        return two - one

    short, long = _TEXT_WIDTHS
    one, two = flops(short, 0), flops(long, 0)
    squared = (two / long - one / short) / (long - short)
    per_token = one / short - squared * short
    image = model.images.layout(model.images.crop_size, model.images.crop_size)
    tokens = image.num_tokens
    of_text = per_token * tokens + squared * tokens**2
    per_crop = (flops(tokens, image.num_crops) - of_text) / image.num_crops
    return ModelFlops(per_token, squared, per_crop, peak_flops)
