"""FLOPs of a forward and backward pass as a function of tokens and vision units, for MFU."""

from __future__ import annotations

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
    """The FLOPs behind a run's MFU; None if the peak is neither given nor known. Takes a few seconds."""
    peak = peak_tflops
    if peak is None and settings.precision.compute is torch.bfloat16:
        peak = known_peak_tflops(device)
    if peak is None:
        return None
    return counted_flops(MetaModel(encoder.base.config, settings, encoder.processor), peak * _TERA)


def counted_flops(model: MetaModel, peak_flops: float) -> ModelFlops:
    """Counts FLOPs on the meta device, with adapters but without what only dropout costs.

    With dropout on its input, DoRA multiplies by the frozen weights twice; the second product is overhead, not useful
    work.
    """
    model = model.without_dropout()

    def flops(width: int, *image_sizes: tuple[int, int]) -> float:
        # The cost of one more row: the fixed cost of a call, such as DoRA's weight norms, belongs to no item.
        one, two = (sum(model.cost(ChunkShape(rows, width, image_sizes), True).flops) for rows in (1, 2))
        return two - one

    per_token, squared = _polynomial(*((width, flops(width)) for width in _TEXT_WIDTHS))

    def of_image(width: int, height: int) -> tuple[int, float]:
        """Vision units of an image, and its FLOPs outside the decoder."""
        tokens = model.processor.num_image_tokens(width, height)
        of_decoder = per_token * tokens + squared * tokens**2
        return model.processor.num_vision_units(width, height), flops(tokens, (width, height)) - of_decoder

    width, height = model.processor.planned_image_size
    large = small = of_image(width, height)
    if model.family.backbone.attends_across_units:
        small = of_image(width // 2, height) if width > height else of_image(width, max(1, height // 2))
    per_unit, squared_units = _polynomial(small, large)
    return ModelFlops(per_token, squared, per_unit, peak_flops, squared_units)


def _polynomial(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Factors a, b of a n + b n^2 through two points (n, FLOPs); b is 0 if both points have the same n."""
    (few, less), (many, more) = small, large
    squared = (more / many - less / few) / (many - few) if many > few else 0.0
    return less / few - squared * few, squared
