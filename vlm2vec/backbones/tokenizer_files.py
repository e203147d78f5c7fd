"""Loads and saves tokenizers; a saved model gets its base's files unchanged, so that transformers 4 reads them too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from vlm2vec.errors import InputError
from vlm2vec.files import refuse_lfs_pointer
from vlm2vec.formats.json_files import read_json, write_json

CONFIG = "tokenizer_config.json"
# Files that transformers reads for a fast tokenizer.
_READ = ("tokenizer.json", CONFIG, "special_tokens_map.json", "added_tokens.json")
# These and other files of a published tokenizer, or of transformers' processor around it.
_NAMES = (
    *_READ,
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "video_preprocessor_config.json",
)
_REASON_CHARACTERS = 300
# Class name that transformers 5 writes and 4 does not know, and a name of the same class that both know.
_NEW_CLASS, _KNOWN_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
_NEW_KEYS = frozenset({"backend", "is_local", "local_files_only"})


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer, kept in memory because the folder may be gone when a checkpoint is written.

    Attributes:
        contents: Contents by file name; empty if the tokenizer was not read from files.
        num_tokens: Number of tokens when it was read.
    """

    contents: Mapping[str, bytes]
    num_tokens: int

    @classmethod
    def read(cls, folder: Path, num_tokens: int) -> TokenizerFiles:
        """Reads the files that a folder has."""
        files = {name: (folder / name).read_bytes() for name in _NAMES if (folder / name).is_file()}
        return cls(files, num_tokens)

    def write(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Writes the files unchanged, or as transformers does if the tokenizer has more tokens than when it was read.

        A class in tokenizer_config.json that transformers 4 does not know is replaced.
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads tokenizer.json unchanged.

    In transformers 5, AutoTokenizer and LlamaTokenizer rebuild the pipeline and lose the separate "▁" after an added
    token, so that every image prompt would be tokenized differently.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json; use a complete checkpoint folder")
    for name in _READ:
        refuse_lfs_pointer(folder / name)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # the Rust library raises plain Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        raise InputError(f"{folder}: damaged tokenizer files ({', '.join(_READ)}: {reason})") from error
    if tokenizer.pad_token_id is None:
        raise InputError(f"{folder}: tokenizer_config.json names no pad_token")
    return tokenizer


def encoded(encoder: Any, text: str) -> Any:
    """Tokenizes a text with the Rust object of a tokenizer; the wrapper takes ten times as long for a short text.

    Args:
        encoder: The tokenizer's `backend_tokenizer`.
        text: The text.

    Raises:
        InputError: The text holds a lone surrogate, which is no character.
    """
    try:
        return encoder.encode(text)
    except (TypeError, UnicodeEncodeError) as error:
        place = next((index for index, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
        if place is None:
            raise
        raise InputError(
            f"the text has half of a surrogate pair ({text[place]!r}) at character {place}, as if it was cut in the "
            "middle of an emoji; repair or remove it"
        ) from error
