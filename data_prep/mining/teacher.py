"""The teacher model: an exported VLM2Vec folder, or a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from vlm2vec.backbones.checkpoint import resolve_folder
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.contrastive import Chunk
from vlm2vec.dora import kept_norms
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.evaluation.encoding import Encode
from vlm2vec.inputs.encoder_inputs import CHARACTERS_PER_TOKEN, ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, errors_of
from vlm2vec.inputs.packing import PackedItem
from vlm2vec.mined.format import Teacher
from vlm2vec.model_folder.digest import fingerprint
from vlm2vec.model_folder.loading import choose_settings, find_folders, load_processor
from vlm2vec.model_folder.settings import SETTINGS_FILE

_MODULES_FILE = "modules.json"
# Tokens that an image counts in a batch's budget, for models whose number is not known.
_IMAGE_TOKENS = 256


class TeacherInputs(Protocol):
    """Computes the sizes of items for the plan, and creates the arguments of encoder calls."""

    def rendered(self, item: EncodeItem) -> str:
        """The text that the model reads; items with the same text and images have the same vector."""

    def measure_item(self, item: EncodeItem) -> PackedItem:
        """The sizes of an item that planning needs."""

    def chunk_of(self, items: Sequence[EncodeItem]) -> Chunk:
        """The arguments of one encoder call for some items."""


@dataclass(frozen=True)
class TeacherFolder:
    """A teacher that has been found but not loaded.

    Attributes:
        name: The name that the user gave.
        folders: The model's folder; for an adapter, the base's and the adapter's.
        is_vlm2vec: Whether this library loads it; otherwise sentence-transformers does.
    """

    name: str
    folders: tuple[Path, ...]
    is_vlm2vec: bool

    @staticmethod
    def find(name: str) -> TeacherFolder:
        """Finds a folder or downloads a Hugging Face repository.

        Raises:
            InputError: There is no such folder or repository.
        """
        folder = resolve_folder(name)
        if (folder / _MODULES_FILE).is_file() and not (folder / SETTINGS_FILE).is_file():
            return TeacherFolder(name, (folder,), is_vlm2vec=False)
        _, base, adapter = find_folders(name, None)
        return TeacherFolder(name, (base,) if adapter is None else (base, adapter), is_vlm2vec=True)

    @property
    def record(self) -> Teacher:
        """Its name, and a hash of the files that decide its vectors."""
        folders = list(self.folders)
        if not self.is_vlm2vec:  # one folder per module
            folders += sorted(path for path in folders[0].rglob("*") if path.is_dir())
        return Teacher(self.name, fingerprint(folders))

    def planning_inputs(self) -> TeacherInputs:
        """Inputs that compute sizes of items; without loading the weights if possible."""
        if not self.is_vlm2vec:
            return TextAndImageInputs()
        base, adapter = self.folders[0], self.folders[1] if len(self.folders) > 1 else None
        settings, _ = choose_settings(base, adapter, {}, family_of_folder(base))
        return Rendered(load_processor(base, adapter), settings.max_len)

    def load(self, device: torch.device) -> tuple[Encode, TeacherInputs, AbstractContextManager[Any]]:
        """The encoder, its inputs, and a context that must be open while it encodes.

        Raises:
            InputError: The model cannot be loaded.
        """
        if self.is_vlm2vec:
            encoder = VLM2Vec.from_pretrained(self.name, device=device).eval()
            return encoder, Rendered(encoder.processor, encoder.max_len, encoder.base.dtype), kept_norms(encoder)
        return SentenceTransformerEncoder(self, device), TextAndImageInputs(), nullcontext()


class Rendered(ItemEncoderInputs):
    """Inputs of a VLM2Vec model."""

    def rendered(self, item: EncodeItem) -> str:
        """The prompt."""
        with errors_of(item.name):
            self.processor.prompt_format.refuse_empty(item.text, len(item.images))
            return self.processor.prompt_format.render(item.text, len(item.images))


class TextAndImageInputs:
    """Inputs of a sentence-transformers model: texts without image tags, and decoded images."""

    def rendered(self, item: EncodeItem) -> str:
        """The text without image tags, which have no meaning for such a model."""
        text = item.text
        for number in range(1, len(item.images) + 1):
            text = text.replace(f"<|image_{number}|>", " ")
        return " ".join(text.split()) if item.images else text

    def measure_item(self, item: EncodeItem) -> PackedItem:
        """An estimate from the text's length, because the library tokenizes and pads by itself."""
        tokens = 1 + len(self.rendered(item)) // CHARACTERS_PER_TOKEN
        return PackedItem(tokens + _IMAGE_TOKENS * len(item.images), len(item.images))

    def chunk_of(self, items: Sequence[EncodeItem]) -> Chunk:
        """One call of `SentenceTransformerEncoder`."""
        values = [self._value(item) for item in items]
        names = tuple(item.name for item in items)
        return Chunk({}, len(items), any(item.images for item in items), host_inputs={"values": values}, names=names)

    def _value(self, item: EncodeItem) -> Any:
        with errors_of(item.name):
            if not item.images:
                return item.text
            images = [image.open() for image in item.images]
            image = images[0] if len(images) == 1 else images
            text = self.rendered(item)
            return {"text": text, "image": image} if text else image


class SentenceTransformerEncoder:
    """A sentence-transformers model with the interface of an encoder; one call encodes one batch.

    Args:
        teacher: Its folder.
        device: The device on which it runs.

    Raises:
        InputError: The model cannot be loaded.
    """

    def __init__(self, teacher: TeacherFolder, device: torch.device) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(
                f"{teacher.name}: needs the package sentence-transformers; pip install "
                "'vlm2vec-deepspeed[sentence-transformers]'"
            ) from error
        self.name = teacher.name
        with errors_of(teacher.name):
            self._model = SentenceTransformer(str(teacher.folders[0]), device=str(device), local_files_only=True)

    def __call__(self, values: list[Any]) -> torch.Tensor:
        """Encodes one batch; returns float32 (items, hidden)."""
        for value in values:
            kind = _modality(value)
            if not self._model.supports(kind):
                wanted = " and ".join(kind) if isinstance(kind, tuple) else kind
                takes = ", ".join(map(str, self._model.modalities))
                raise InputError(f"{self.name}: the model takes {takes}, not {wanted}; use a different teacher")
        vectors: torch.Tensor = self._model.encode(
            values, batch_size=len(values), convert_to_tensor=True, show_progress_bar=False
        )
        return vectors


def _modality(value: Any) -> Any:
    if isinstance(value, str):
        return "text"
    return tuple(sorted(value)) if isinstance(value, dict) else "image"
