"""From a checkpoint of ZeRO ranks to a Hugging Face folder, without starting ranks.

python -m vlm2vec.export CHECKPOINT OUT [--dtype bf16|fp32] [--merge_lora]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError, run_program
from vlm2vec.files import apply_umask
from vlm2vec.phi3_v import Phi3VModel
from vlm2vec.phi3_v.checkpoint import check_tensors, checkpoint_shapes, load_config
from vlm2vec.training.checkpoint import ENCODER_FOLDER, ENGINE_TAG, RECORD, RunRecord, find_checkpoint
from vlm2vec.training.engine import prepare_environment
from vlm2vec.training.state_files import safe_state_files

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# How the trained module's parameters are called inside `VLM2Vec`.
_BACKBONE = "backbone."


def main() -> None:
    """Exports from the command line."""
    parser = argparse.ArgumentParser(prog="vlm2vec.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder (its latest checkpoint)")
    parser.add_argument("output", type=Path, help="folder to make; must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights; the run's compute dtype if not given")
    parser.add_argument("--merge_lora", action="store_true", help="add the adapter to its base's weights")
    options = parser.parse_args()
    checkpoint = find_checkpoint(options.checkpoint)
    export(checkpoint, options.output, DTYPES.get(options.dtype), options.merge_lora)
    print(f"exported {checkpoint} to {options.output}")


def export(checkpoint: Path, output: Path, dtype: torch.dtype | None = None, merge_lora: bool = False) -> None:
    """Writes the Hugging Face folder of a checkpoint.

    A run with `--lora` gives an adapter folder that names its base model, or with `merge_lora` a whole model. Weights
    come from the float32 master copies.

    Args:
        checkpoint: As `vlm2vec.training.checkpoint.Checkpoints` writes it.
        output: The folder to make. It appears under its name when it is complete.
        dtype: Of the written weights; None: bfloat16 if the run computed in it, else float32. An adapter stays float32.
        merge_lora: Add the adapter to the base model's weights.

    Raises:
        InputError: Not a complete checkpoint, an output that exists, or an option without effect.
    """
    record = RunRecord.read(checkpoint / RECORD)
    is_adapter = bool(record.arguments["lora"])
    if merge_lora and not is_adapter:
        raise InputError(f"--merge_lora: {checkpoint} is of a run without --lora; there is nothing to merge")
    if is_adapter and not merge_lora and dtype is not None:
        raise InputError("--dtype: adapters are written in float32; use it with --merge_lora")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already; choose another folder or remove it")
    dtype = dtype or (torch.bfloat16 if record.arguments["bf16"] else torch.float32)
    with _appearing(output) as folder:
        shutil.copytree(checkpoint / ENCODER_FOLDER, folder, dirs_exist_ok=True)
        weights = _saved_weights(checkpoint, record)
        if not is_adapter:
            _write_model(weights, folder, dtype)
        elif merge_lora:
            _write_merged(weights, folder, record, dtype)
        else:
            _write_adapter(weights, folder)


def _saved_weights(checkpoint: Path, record: RunRecord) -> dict[str, torch.Tensor]:
    """The checkpoint's weights by the backbone's own names; trained ones are the float32 master copies."""
    prepare_environment()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with (
        safe_state_files(),
        open(os.devnull, "w") as silence,
        redirect_stdout(silence),  # it prints a line for every parameter it finds
    ):
        try:
            weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ENGINE_TAG)
            if record.zero_stage == 1:  # its converter leaves frozen weights out
                file = checkpoint / ENGINE_TAG / "mp_rank_00_model_states.pt"
                weights = torch.load(file, map_location="cpu", weights_only=True)["module"] | weights
        except Exception as error:  # missing, torn or foreign files surface as any type
            reason = " ".join(str(error).split())
            raise InputError(f"{checkpoint / ENGINE_TAG}: cannot be read as ZeRO state ({reason})") from error
    return {name.removeprefix(_BACKBONE): tensor for name, tensor in weights.items()}


def _write_model(weights: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    # Clones: the weights are slices of ZeRO's flat buffers, and safetensors refuses to guess what a slice shares.
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in weights.items()}
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
    found = checkpoint_shapes(folder)
    config = load_config(folder, found)
    check_tensors(folder, found, Phi3VModel.tensor_shapes(config))
    config.dtype = dtype  # the checkpoint's configuration says what the run loaded, not what is written here
    config.save_pretrained(folder)


def _write_adapter(weights: dict[str, torch.Tensor], folder: Path) -> None:
    tensors = {_name_in_adapter_file(name): tensor.clone() for name, tensor in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _name_in_adapter_file(name: str) -> str:
    """PEFT's name for a parameter in files: without the adapter's own name; DoRA's vectors without `.weight`."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default.", ".")


def _write_merged(weights: dict[str, torch.Tensor], folder: Path, record: RunRecord, dtype: torch.dtype) -> None:
    """Merges in float32 and rounds once, at the end."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as adapter:
        shutil.copytree(folder, adapter, dirs_exist_ok=True)
        _write_adapter(weights, Path(adapter))
        encoder = VLM2Vec.from_pretrained(record.arguments["model_name"], adapter, dtype=torch.float32)
    encoder.merge_lora()
    (folder / "adapter_config.json").unlink()
    encoder.to(dtype).save_pretrained(folder)


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when the block ends well, and vanishes when it does not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".tmp-{output.name}-"))
    folder.chmod(0o755)
    try:
        yield folder
        apply_umask(folder)
        if output.exists():
            output.rmdir()
        os.replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run_program(main))
