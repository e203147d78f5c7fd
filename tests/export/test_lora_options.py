"""Every combination of LoRA and freezing options, from checkpoint files through export to loading."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.export import export
from vlm2vec.model_folder.adapter_files import PEFT_0_11_KEYS
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, ENGINE_TAG, RECORD, RunRecord
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.flags.run import RunArguments, parse_arguments

TEXTS = ["coffee", "a three to the left of a seven"]
TARGETS = {
    "default": [],
    "text alone": ["--lora_target_modules", "qkv_proj, down_proj"],
    "mixed": ["--lora_target_modules", "o_proj,q_proj"],
    "projection": ["--lora_target_modules", "o_proj,img_projection.0"],
}
OTHERS = {
    "plain": ["--lora_use_dora", "False"],
    "dora": [],
    "frozen tower": ["--freeze_vision_tower", "True"],
    "frozen tower without dora": ["--freeze_vision_tower", "True", "--lora_use_dora", "False", "--lora_r", "3"],
}
REFUSED = [
    ["--lora_target_modules", "q_proj,v_proj", "--freeze_vision_tower", "True"],
    ["--lora_target_modules", "out_proj", "--freeze_vision_tower", "True", "--lora_use_dora", "False"],
    ["--lora_target_modules", ","],
    ["--lora_target_modules", "0"],
]


def arguments_of(model: Path, *flags: str) -> RunArguments:
    return parse_arguments(
        [
            *(
                "--model_name",
                str(model),
                "--dataset_name",
                "unused",
                "--output_dir",
                "unused",
                "--deepspeed",
                "unused",
            ),
            *("--max_steps", "1", "--global_batch_size", "2", "--lora", "True", *flags),
        ]
    )


def write_checkpoint(encoder: VLM2Vec, arguments: RunArguments, folder: Path) -> None:
    """What one rank under ZeRO-2 writes: what is trained, and nothing of what is frozen."""
    trained = {name: each.detach() for name, each in encoder.named_parameters() if each.requires_grad}
    engine = folder / ENGINE_TAG
    engine.mkdir(parents=True)
    flat = torch.cat([each.flatten().float() for each in trained.values()])
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 2))
    state = {"zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": [flat]}
    torch.save({"optimizer_state_dict": state}, engine / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    shapes = {name: each.shape for name, each in trained.items()}
    assert sum(map(math.prod, shapes.values())) <= len(flat)
    torch.save({"module": trained, "param_shapes": [shapes]}, engine / "mp_rank_00_model_states.pt")
    encoder.save_configuration(folder / ENCODER_FOLDER, with_base=True)
    RunRecord(1, 1, 2, arguments.as_dict() | {"max_len": 256}, {}, {}).write(folder / RECORD)


def trained_encoder(arguments: RunArguments) -> VLM2Vec:
    encoder = build_encoder(arguments.resolve(1, {"zero_optimization": {"stage": 2}}).encoder).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=generator)
    return encoder


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("others", OTHERS)
def test_what_is_trained_is_exported_and_loaded(
    targets: str, others: str, golden_model_dir: Path, tmp_path: Path
) -> None:
    arguments = arguments_of(golden_model_dir, *TARGETS[targets], *OTHERS[others])
    encoder = trained_encoder(arguments)
    assert all(each.requires_grad for name, each in encoder.named_parameters() if "lora_" in name)
    live = encoder.encode(texts=TEXTS)
    write_checkpoint(encoder, arguments, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "adapter")
    export(tmp_path / "checkpoint", tmp_path / "merged", merge_lora=True)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()).keys() == PEFT_0_11_KEYS
    assert torch.equal(VLM2Vec.from_pretrained(tmp_path / "adapter").encode(texts=TEXTS), live)
    merged = VLM2Vec.from_pretrained(tmp_path / "merged").encode(texts=TEXTS)
    torch.testing.assert_close(merged, live, rtol=0, atol=1e-5)
    assert not (tmp_path / "adapter" / "base").exists()
    assert not (tmp_path / "merged" / "base").exists()


@pytest.mark.parametrize("flags", REFUSED)
def test_options_that_would_train_nothing(flags: list[str], golden_model_dir: Path) -> None:
    with pytest.raises(InputError, match=r"^--lora.*lora_target_modules"):
        trained_encoder(arguments_of(golden_model_dir, *flags))


def test_an_adapter_is_no_model_to_train(golden_model_dir: Path, tmp_path: Path) -> None:
    trained_encoder(arguments_of(golden_model_dir)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is an adapter.*--merge_lora"):
        trained_encoder(arguments_of(tmp_path))


def test_an_adapter_that_lacks_tensors_does_not_appear(golden_model_dir: Path, tmp_path: Path) -> None:
    """As older versions' checkpoints of a run with a frozen tower do."""
    arguments = arguments_of(golden_model_dir)
    encoder = trained_encoder(arguments)
    encoder.base.model.vision_embed_tokens.requires_grad_(False)
    write_checkpoint(encoder, arguments, tmp_path / "checkpoint")
    with pytest.raises(InputError, match="does not fit the model: 24 of 60 tensors differ"):
        export(tmp_path / "checkpoint", tmp_path / "adapter")
    with pytest.raises(InputError, match="do not fit together"):
        export(tmp_path / "checkpoint", tmp_path / "merged", merge_lora=True)
    assert not (tmp_path / "adapter").exists()


def test_merging_with_a_different_base_is_refused(golden_model_dir: Path, tmp_path: Path) -> None:
    arguments = arguments_of(golden_model_dir)
    write_checkpoint(trained_encoder(arguments), arguments, tmp_path / "checkpoint")
    other = Path(shutil.copytree(golden_model_dir, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for merge in (False, True):
        with pytest.raises(InputError, match=r"was trained on a different base model .*--base_model"):
            export(tmp_path / "checkpoint", tmp_path / "out", merge_lora=merge, base_model=str(other))
