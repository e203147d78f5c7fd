"""Estimates for a family that exists only in the tests, and for published models without their files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.rig.made_up_family import FAMILY, STRIPE, WIDTH, MadeUpConfig, MadeUpModel, Tower, write_made_up_model
from trials.rig.launcher import REPOSITORY
from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.phi3_v import Phi3VConfig
from vlm2vec.backbones.registry import DEFAULT_MODEL, published_config, register
from vlm2vec.errors import InputError
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.model_flops import counted_flops
from vlm2vec.plan.passes import ChunkShape, measure
from vlm2vec.plan.run_plan import main, parse_cluster, read_plan
from vlm2vec.training.flags.run import parse_arguments

ZERO2 = str(REPOSITORY / "ds_configs/zero2.json")
IMAGE = (WIDTH, 6 * STRIPE)  # 6 stripes, 3 tokens


class AttendingConfig(MadeUpConfig):
    model_type = "attending"


class AttendingTower(Tower):
    """Besides, every stripe looks at all stripes of its image."""

    def forward(self, stripes: torch.Tensor, heights: Sequence[int]) -> torch.Tensor:
        features = super().forward(stripes, heights)
        return torch.cat([each + (each @ each.T).softmax(-1) @ each for each in features.split(list(heights))])


class AttendingModel(MadeUpModel):
    config_class = AttendingConfig
    attends_across_units: ClassVar[bool] = True

    def __init__(self, config: AttendingConfig) -> None:
        super().__init__(config)
        self.tower = AttendingTower(config)


ATTENDING = replace(FAMILY, model_type=AttendingConfig.model_type, backbone=AttendingModel)
register(AttendingConfig.model_type, lambda: ATTENDING)


def meta_model(config: MadeUpConfig, *flags: str, family: Family = FAMILY) -> MetaModel:
    needed = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", ZERO2]
    given = parse_arguments([*needed, "--max_steps", "1", "--global_batch_size", "8", *flags])
    settings = given.resolve(1, {"zero_optimization": {"stage": 2}})
    return MetaModel(config, settings.encoder, family.processor.without_tokenizer(config))


@pytest.mark.parametrize("flags", [[], ["--gradient_checkpointing"], ["--bf16", "--lora"]], ids=" ".join)
def test_shallow_models_tell_what_a_deep_one_takes(flags: list[str]) -> None:
    """Two images a row, whose features enter the decoder twice."""
    made = meta_model(MadeUpConfig(num_hidden_layers=5, num_tower_layers=4), *flags)
    shape, checkpointing = ChunkShape(3, 40, (IMAGE, (WIDTH, 4 * STRIPE))), "--gradient_checkpointing" in flags
    expected = measure(made.encoder((5, 4)), shape, True, checkpointing)
    cost = made.cost(shape, True, checkpointing)
    assert (cost.pixels, cost.saved, cost.flops) == (expected.pixels, expected.saved, expected.flops)
    assert cost.peak == pytest.approx(expected.peak, rel=0.05)
    stripes, places = 3 * (6 + 4), 3 * (3 + 2)
    bytes_of_a_number = 2 if "--bf16" in flags else 4
    assert cost.pixels == stripes * 3 * WIDTH * STRIPE * bytes_of_a_number + places * 8


def test_a_blank_chunk_is_that_of_real_images(tmp_path: Path) -> None:
    """Of the same shapes, but that it has no content; on the CPU it runs."""
    write_made_up_model(tmp_path)
    made = meta_model(MadeUpConfig())
    shape = ChunkShape(2, 20, (IMAGE,))
    arguments = shape.arguments(made.processor, torch.float32, torch.device("cpu"))
    assert {name: tuple(each.shape) for name, each in arguments.items() if isinstance(each, torch.Tensor)} == {
        **{"input_ids": (2, 20), "attention_mask": (2, 20)},
        **{"stripes": (12, 3 * WIDTH * STRIPE), "image_rows": (6,)},
    }
    assert arguments["heights"] == (6, 6)
    assert arguments["image_rows"].tolist() == [0, 1, 2, 20, 21, 22]
    assert MadeUpModel(MadeUpConfig())(**arguments).isfinite().all()


@pytest.mark.parametrize(("config", "family"), [(MadeUpConfig(), FAMILY), (AttendingConfig(), ATTENDING)])
def test_flops_of_images_of_any_size(config: MadeUpConfig, family: Family) -> None:
    """Counted with two sizes of images and two of texts; where a tower attends, the squares of its units count."""
    made = meta_model(config, family=family)
    counted = counted_flops(made, peak_flops=1.0)
    assert (counted.per_squared_vision_unit > 0) == family.backbone.attends_across_units
    for stripes in (2, 6, 16):
        size, tokens = (WIDTH, stripes * STRIPE), stripes // 2 + 30
        one, three = (sum(made.cost(ChunkShape(rows, tokens, (size,)), True).flops) for rows in (1, 3))
        of = counted.of(2 * tokens, 2 * tokens**2, 2 * stripes, 2 * stripes**2)
        assert of == pytest.approx(three - one, rel=1e-6)


def plan_flags(*flags: str) -> list[str]:
    return ["--gpus", "2", "--deepspeed", ZERO2, "--max_steps", "1", "--global_batch_size", "64", *flags]


def test_chunks_are_filled_by_tokens_and_vision_units(tmp_path: Path) -> None:
    write_made_up_model(tmp_path)
    flags = ["--model_name", str(tmp_path), "--chunk_tokens", "200", "--text_tokens", "10"]
    plan = read_plan(plan_flags(*flags, "--image_size", f"{WIDTH}x{7 * STRIPE - 1}"))
    assert (plan.image_tokens, plan.vision_units, plan.budget_tokens) == (13, 6, 16)
    assert (plan.image_rows(), plan.text_rows(), plan.encode_rows) == (200 // 16, 200 // 10, 4 * (200 // 16))
    assert plan.calls.repeat_with_images == math.ceil(32 / (200 // 16))
    # The folder's own limit, 12 stripes, and not the most that the model could take.
    largest = read_plan(plan_flags(*flags))
    assert (largest.image_size, largest.vision_units) == ((WIDTH, 12 * STRIPE), 12)


def test_tables_name_the_images_and_the_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_made_up_model(tmp_path)
    main(plan_flags("--model_name", str(tmp_path), "--image_size", "32x48"))
    out = " ".join(capsys.readouterr().out.split())
    assert "1 images a pair of 32 x 48 pixels, each with 6 vision units (stripes)" in out
    assert "Fits: ZeRO-2" in out


def test_a_published_model_is_planned_without_its_files() -> None:
    plan = read_plan(plan_flags("--model_name", "TIGER-Lab/VLM2Vec-Full"))
    assert plan.model.config.to_dict() == Phi3VConfig().to_dict()
    assert plan.model.processor.image_limits == {"num_crops": 4}
    # The model that the recipes train, where no name is given.
    assert read_plan(plan_flags()).model.config.to_dict() == plan.model.config.to_dict()
    with pytest.raises(InputError, match=f"some/model: neither a folder with config.json nor .*{DEFAULT_MODEL}"):
        read_plan(plan_flags("--model_name", "some/model"))


@pytest.mark.parametrize("name", FAMILY.published_configs or [DEFAULT_MODEL])
def test_published_configurations_have_no_other_files(name: str) -> None:
    files = {path.name for path in published_config(name).iterdir()}
    assert files <= {"config.json", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("640", "must be WIDTHxHEIGHT"),
        ("0x5", "must be WIDTHxHEIGHT"),
        ("5x٣", "must be WIDTHxHEIGHT"),
        ("100000x2", "more than 65535 pixels"),
        ("90000x90000", "more than 89478485 pixels"),
    ],
)
def test_sizes_that_no_image_has(size: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^--image_size .*{re.escape(size) if size.isascii() else ''}.*: .*{reason}"):
        parse_cluster(["--image_size", size])


def test_an_image_that_the_family_cannot_cut() -> None:
    with pytest.raises(InputError, match=r"^--image_size 3000x2: .*too thin"):
        read_plan(plan_flags("--image_size", "3000x2"))
