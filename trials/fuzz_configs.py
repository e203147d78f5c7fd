"""Fuzz test: damages the JSON files of a saved model; each must be refused in one line or give the right vectors.

python -m trials.fuzz_configs --model_name demo/untrained --trials 400 --seed 0
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from vlm2vec import VLM2Vec
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser, first_line

VALUES: tuple[Any, ...] = (
    *(None, 0, -1, 1, 2, 3, 7, 1.5, 10**12, 1e12, -1e12, 1e-30, True, False, "", "x", "0", [], [1, 2], ["x"], {}),
    *({"a": 1}, [[1.0] * 8], [0.5, 0.5, 0.5], [0, 0, 0], "<s>", "float16", "gelu", "longrope"),
)
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "zeros": b"\0" * 100,
    "deep": b"[" * 50_000,
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}
# Fields whose other values describe a different model, tokenizer or processor without contradicting anything else.
OTHER_MODEL = {
    "config.json": (
        *("num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling"),
        *("dtype", "vision_config.num_attention_heads", "vision_config.hidden_act", "vision_config.layer_norm_eps"),
        *("max_position_embeddings", "original_max_position_embeddings"),
    ),
    "preprocessor_config.json": ("image_mean", "image_std"),
    "vlm2vec_config.json": ("max_len", "normalize", "num_crops"),
    "adapter_config.json": ("lora_alpha", "use_rslora", "alpha_pattern", "fan_in_fan_out"),
    "tokenizer_config.json": ("",),
    "tokenizer.json": ("",),
}
SECONDS = 60  # a trial takes less than one second; loading that hangs counts as a crash


def undamaged(model: Path, work: Path) -> tuple[Path, Path]:
    """Saves a model and an adapter on it; returns their folders."""
    encoder = VLM2Vec.from_pretrained(model, dtype=torch.float32, device="cpu")
    encoder.save_pretrained(work / "model")
    encoder = VLM2Vec.from_pretrained(work / "model", device="cpu")
    encoder.add_lora(LoraSettings(r=2, init="kaiming"))
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.save_pretrained(work / "adapter")
    return work / "model", work / "adapter"


def vectors(folder: Path) -> torch.Tensor:
    """The vectors of a text longer than a few tokens, and of an image."""
    image = Image.linear_gradient("L").resize((70, 50)).convert("RGB")
    texts = ["a three to the left of a seven", None]
    return VLM2Vec.from_pretrained(folder, device="cpu").encode(texts, [None, image], show_progress=False)


def places(content: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of the fields of a JSON file; only the first ones of long lists and dictionaries."""
    if prefix:
        yield prefix
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items)[:40]:
        yield from places(value, (*prefix, key))


def damage(file: Path, draw: random.Random) -> tuple[str, str]:
    """Damages the file.

    Returns:
        The damaged field ("" for the whole file), and what was done.
    """
    if draw.random() < 0.15:
        kind = draw.choice(["truncated", *CONTENTS])
        data = file.read_bytes()
        file.write_bytes(CONTENTS[kind] if kind in CONTENTS else data[: draw.randrange(len(data))])
        return "", kind
    content = json.loads(file.read_text())
    path = draw.choice([place for place in places(content) if len(place) < 4])
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if draw.random() < 0.2:
        del parent[path[-1]]
        done = "removed"
    else:
        parent[path[-1]] = draw.choice(VALUES)
        done = f"= {json.dumps(parent[path[-1]])}"
    file.write_text(json.dumps(content))
    return ".".join(map(str, path)), done


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `TimeoutError` in the main thread after this many seconds."""

    def end(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trial(folders: tuple[Path, Path], expected: dict[str, torch.Tensor], draw: random.Random) -> tuple[str, str]:
    """Damages one file of a model or an adapter, loads it, and puts the file back.

    Returns:
        The outcome, "refused", "same", "another model", or what is wrong; and what was damaged.
    """
    folder = draw.choice(folders)
    file = draw.choice(sorted(folder.glob("*.json")))
    whole = file.read_bytes()
    field, done = damage(file, draw)
    what = f"{folder.name}/{file.name} {field} {done}"
    try:
        with limited(SECONDS):
            found = vectors(folder)
    except InputError as error:
        message = str(error)
        is_good = "\n" not in message and len(message) < 1000 and (file.name in message or folder.name in message)
        return ("refused" if is_good else f"unclear message: {message}"), what
    except Exception as error:
        return f"crash: {type(error).__name__}: {' '.join(str(error).split())[:200]}", what
    finally:
        file.write_bytes(whole)
    if torch.allclose(found, expected[folder.name], rtol=0, atol=1e-5):
        return "same", what
    if field.startswith(OTHER_MODEL.get(file.name, ())) and torch.isfinite(found).all():
        return "another model", what
    return f"wrong vectors ({float((found - expected[folder.name]).abs().max()):.1e})", what


def run(model: Path, trials: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Counts of the good outcomes, and one line for each failed trial."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    disable_progress_bar()
    set_verbosity_error()
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folders = undamaged(model, Path(work))
        expected = {folder.name: vectors(folder) for folder in folders}
        assert (expected["model"] - expected["adapter"]).abs().max() > 1e-2  # the adapter has an effect
        for number in range(trials):
            outcome, what = trial(folders, expected, random.Random(f"{seed} {number}"))
            if outcome in ("refused", "same", "another model"):
                counts[outcome] += 1
            else:
                wrong.append(f"trial {number}: {what}: {outcome}")
    return counts, wrong


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.fuzz_configs",
        description=first_line(__doc__),
        examples=("python -m trials.fuzz_configs --model_name demo/untrained --trials 400",),
    )
    made.add_argument("--model_name", type=Path, required=True, metavar="DIR", help="Folder of a small model.")
    made.add_argument("--trials", type=int, default=400, help="Number of damaged files.")
    made.add_argument("--seed", type=int, default=0, help="Seed of the random choices.")
    return made


def main() -> int:
    """Parses the command line, damages configurations, prints the outcomes."""
    options = parser().parse_args()
    start = time.monotonic()
    counts, wrong = run(options.model_name, options.trials, options.seed)
    print("\n".join(wrong))
    print(f"{dict(counts)}, {len(wrong)} wrong, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
