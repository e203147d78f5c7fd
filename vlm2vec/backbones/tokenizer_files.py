"""A tokenizer and its files: a saved model gets its base's word for word, so that transformers 4 opens them too."""

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
# What transformers reads of a fast tokenizer.
_READ = ("tokenizer.json", CONFIG, "special_tokens_map.json", "added_tokens.json")
# What else belongs to a published tokenizer or to the processor that transformers makes around it.
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """tokenizer.json as it stands.

    AutoTokenizer and LlamaTokenizer rebuild the pipeline in transformers 5 and lose the separate "▁" that follows an
    added token, so that every image prompt would be tokenized differently.
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
    """A text's tokens by the Rust object of a tokenizer, whose wrapper costs ten times as much for a short text.

    Args:
        encoder: `backend_tokenizer` of a tokenizer.
        text: What is tokenized.

    Raises:
        InputError: The text holds half of a surrogate pair, which is no character.
    """
    try:
        return encoder.encode(text)
    except (TypeError, UnicodeEncodeError) as error:
        place = next((index for index, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
        if place is None:
            raise
        raise InputError(
            f"the text has half of a surrogate pair ({text[place]!r}) at character {place}, as a text that was cut "
            "in the middle of an emoji; repair or remove it"
        ) from error
