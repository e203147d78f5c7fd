"""Command lines whose flags are the fields of dataclasses."""

from __future__ import annotations

import argparse
from typing import Any

from transformers import HfArgumentParser

from vlm2vec.errors import OneLineErrors


class DataclassParser(OneLineErrors, HfArgumentParser):
    """transformers' parser, with errors of one line."""

    def add_argument(self, *names: Any, policy: object = None, **keywords: Any) -> argparse.Action:
        """As argparse's; takes a field's metadata as transformers passes it on, which may hold a policy."""
        return super().add_argument(*names, **keywords)
