"""Model card (README.md) of an average: its sources and their weights, the method, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from vlm2vec.average.mean import Factors
from vlm2vec.average.sources import Source
from vlm2vec.export.card import CARD, in_hub, license_of, public_name

_TEMPLATE = Path(__file__).with_name("card_template.md")


def write_card(folder: Path, name: str, sources: Sequence[Source], shares: Sequence[float], factors: Factors) -> None:
    """Writes the model card with the Hub's metadata as its front matter.

    Args:
        folder: Folder that receives the card.
        name: Name of the averaged model.
        sources: The folders that were averaged.
        shares: Weight of each source; they sum to 1.
        factors: How adapters were averaged, see `mean_tensors`.
    """
    first = sources[0]
    parents = [first.base or ""] if first.is_adapter else [source.name for source in sources]
    parents = [parent for parent in parents if in_hub(parent)]
    cards = [license_of(source.folder) for source in sources]
    metadata = ModelCardData(
        **(cards[0] if all(card == cards[0] for card in cards) else {}),
        base_model=parents or None,
        base_model_relation=("adapter" if first.is_adapter else "merge") if parents else None,
        library_name="peft" if first.is_adapter else "sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "feature-extraction", "multimodal-embedding", "vlm2vec", "merge"],
        model_name=name,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        name=name,
        is_adapter=first.is_adapter,
        base=public_name(first.base or "its base model"),
        is_exact=factors == "exact",
        dtype=", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in first.dtypes.values()})),
        rows=[f"| {public_name(source.name)} | {share:.6g} |" for source, share in zip(sources, shares, strict=True)],
    )
    card.save(folder / CARD)
