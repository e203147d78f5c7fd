"""No model call synchronizes with the device, which on a GPU costs more than a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rig.qwen_calls import ROWS, Call, dummy_arguments, made_call
from tests.rig.qwen_models import MODELS, loaded
from vlm2vec.backbones.qwen_vl.modeling import QwenVLModel
from vlm2vec.encoder import VLM2Vec

# What reads values of a tensor on the host, or makes a tensor whose size depends on values.
SYNCHRONISING = (
    *("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "nonzero_static", "masked_select"),
    *("masked_scatter", "masked_scatter_", "repeat_interleave", "unique_dim", "_unique2", "unique_consecutive"),
    *("bincount", "histc", "allclose"),
)


class NoHostSync(TorchDispatchMode):
    """Refuses operators that wait for the device, in the backward pass too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operator, or fails."""
        name = func.overloadpacket.__name__
        assert name not in SYNCHRONISING, f"{func} waits for the device"
        kwargs = kwargs or {}
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert not any(each is not None and each.dtype == torch.bool for each in args[1]), f"{func} with a mask"
        if name in ("_to_copy", "copy_"):
            devices = [each.device.type for each in args if isinstance(each, torch.Tensor)]
            devices.append(torch.device(kwargs.get("device") or devices[0]).type)
            assert devices[0] == "cpu" or set(devices) == {devices[0]}, f"{func} brings values to the host"
        return func(*args, **kwargs)


def arguments(model: QwenVLModel, kind: str) -> Call:
    """A chunk with images, of texts alone, or of texts with the dummy."""
    if kind == "images":
        return made_call(model.config, ROWS)
    call = made_call(model.config, [ROWS[1], [5, 6]])
    return {**call, **dummy_arguments(model.config)} if kind == "dummy" else call


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_forward_and_backward_never_wait_for_the_device(family: str, implementation: str) -> None:
    """On the meta device there is nothing to read: what is not refused by name would fail."""
    model = loaded(family, implementation).to("meta").train()
    encoder = VLM2Vec(model, processor=None, max_len=None)  # type: ignore[arg-type]
    for checkpointing, kind in (
        (False, "images"),
        (False, "texts"),
        (False, "dummy"),
        (True, "images"),
        (True, "dummy"),
    ):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        call = {
            name: each.to("meta") if isinstance(each, torch.Tensor) else each
            for name, each in arguments(model, kind).items()
        }
        with NoHostSync():
            encoder(**call).square().sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_guard_sees_what_waits(device: str) -> None:
    values, counts = torch.tensor([0.0, 1.0]).to(device), torch.tensor([1, 2]).to(device)
    waiting: list[Callable[[], Any]] = [
        lambda: values.sum().item(),
        lambda: bool(values.any()),
        lambda: values.nonzero(),
        lambda: values[values > 0],
        lambda: torch.masked_select(values, values > 0),
        lambda: torch.repeat_interleave(values, counts),
        lambda: torch.equal(values, values),
    ]
    if device == "meta":  # the CPU's tensors are read without any operator
        waiting += [values.tolist, values.cpu]
    for call in waiting:
        with pytest.raises((AssertionError, NotImplementedError, RuntimeError)), NoHostSync():
            call()
