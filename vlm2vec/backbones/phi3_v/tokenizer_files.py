"""The tokenizer's files of a saved model: its base's, word for word, so that old versions of transformers open them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from vlm2vec.formats.json_files import read_json, write_json

CONFIG = "tokenizer_config.json"
_NAMES = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
# What transformers 5 writes and 4 does not know, and the same class by a name that both know.
_NEW_CLASS, _KNOWN_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
_NEW_KEYS = frozenset({"backend", "is_local", "local_files_only"})


@dataclass(frozen=True)
class TokenizerFiles:
    """The files that a tokenizer was read from; kept, as the folder may be gone when a checkpoint is written.

    Attributes:
        contents: By name; empty if the tokenizer was made from something else.
        num_tokens: Of the tokenizer when it was read.
    """

    contents: Mapping[str, bytes]
    num_tokens: int

    @classmethod
    def read(cls, folder: Path, num_tokens: int) -> TokenizerFiles:
        """What of them a folder holds."""
        files = {name: (folder / name).read_bytes() for name in _NAMES if (folder / name).is_file()}
        return cls(files, num_tokens)

    def write(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Writes the files as they were read; a tokenizer that has got more tokens since then as transformers does.

        The class in tokenizer_config.json is replaced where transformers 4 does not know it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.contents and len(tokenizer) == self.num_tokens:
            for name, content in self.contents.items():
                (folder / name).write_bytes(content)
        else:
            tokenizer.save_pretrained(str(folder))
        if not (folder / CONFIG).is_file():
            return
        config = read_json(folder / CONFIG)
        if config.get("tokenizer_class") == _NEW_CLASS:
            known = {name: value for name, value in config.items() if name not in _NEW_KEYS}
            write_json(folder / CONFIG, known | {"tokenizer_class": _KNOWN_CLASS})
