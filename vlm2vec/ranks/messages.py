"""Messages between ranks, as JSON instead of pickles.

torch's object collectives unpickle what arrives, and unpickling runs code: anyone who reaches the job's port before a
rank does could run anything. Here only text is received, and it is parsed as the expected type.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError

from vlm2vec.errors import InputError

Value = TypeVar("Value")
# Largest message of one rank. Real messages take kilobytes; a forged length must not allocate memory.
MOST_BYTES = 256 * 2**20


def gather_from_all(value: Value, kind: Any = Any, group: dist.ProcessGroup | None = None) -> list[Value]:
    """Gathers every rank's value, in the order of ranks; a collective.

    Args:
        value: This rank's value, of JSON's types or of type `kind`.
        kind: Type to parse, such as a dataclass; `Any` gives JSON's types (lists for tuples, strings as keys).
        group: The process group; the default group if None.

    Raises:
        InputError: On all ranks: what a rank sent is not of that type.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [decoded(encoded(value, kind), 0, kind)]
    device = _device(group)
    own = torch.frombuffer(bytearray(encoded(value, kind)), dtype=torch.uint8).to(device)
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes, torch.tensor([len(own)], device=device), group=group)
    lengths: list[int] = sizes.tolist()
    for rank, length in enumerate(lengths):
        if not 0 < length <= MOST_BYTES:
            raise InputError(_refusal(rank, f"{length} bytes, expected 1 to {MOST_BYTES}"))
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    gathered = torch.empty(len(lengths) * len(padded), dtype=torch.uint8, device=device)
    dist.all_gather_into_tensor(gathered, padded, group=group)
    rows = gathered.view(len(lengths), -1).cpu()
    return [decoded(rows[rank, :length].numpy().tobytes(), rank, kind) for rank, length in enumerate(lengths)]


def send_from_first(value: Value, kind: Any = Any, group: dist.ProcessGroup | None = None) -> Value:
    """Returns the first rank's value on every rank; a collective. The other ranks' `value` is ignored.

    Args:
        value: See `gather_from_all`.
        kind: See `gather_from_all`.
        group: The process group; the default group if None.

    Raises:
        InputError: On all ranks: what the first rank sent is not of that type.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return decoded(encoded(value, kind), 0, kind)  # type: ignore[no-any-return]
    device, is_first = _device(group), dist.get_rank(group) == 0
    text = torch.frombuffer(bytearray(encoded(value, kind) if is_first else b"-"), dtype=torch.uint8).to(device)
    size = torch.tensor([len(text)], device=device)
    dist.broadcast(size, group_src=0, group=group)
    length = int(size)
    if not 0 < length <= MOST_BYTES:
        raise InputError(_refusal(0, f"{length} bytes, expected 1 to {MOST_BYTES}"))
    if not is_first:
        text = torch.empty(length, dtype=torch.uint8, device=device)
    dist.broadcast(text, group_src=0, group=group)
    return decoded(text.cpu().numpy().tobytes(), 0, kind)  # type: ignore[no-any-return]


def encoded(value: Any, kind: Any = Any) -> bytes:
    """Encodes a value to be sent.

    Raises:
        TypeError: It is neither of JSON's types nor of type `kind`.
    """
    if kind is not Any:
        value = TypeAdapter(kind).dump_python(value, mode="json", warnings="error")
    return json.dumps(value).encode("ascii")


def decoded(text: bytes, rank: int, kind: Any = Any) -> Any:
    """Decodes the value that a rank sent.

    Raises:
        InputError: It is not JSON, or not of type `kind`.
    """
    try:
        value = json.loads(text)
        return value if kind is Any else TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(_refusal(rank, f"{place}: {first['msg']}" if place else first["msg"])) from error
    except (ValueError, RecursionError) as error:
        raise InputError(_refusal(rank, f"not JSON: {error}")) from error


def _refusal(rank: int, problem: str) -> str:
    return (
        f"what rank {rank} sent cannot be read ({problem}): another program may have reached the port through which "
        "the ranks meet; use a port that no other job uses, in a private network"
    )


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Device of tensors in the group's collectives."""
    if dist.get_backend(group) == "gloo":
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
