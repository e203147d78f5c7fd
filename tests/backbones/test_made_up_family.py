"""The made-up family in one process; tests/distributed/test_made_up_family.py trains it on ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.rig.comparing import assert_close_relative, relative_error
from tests.rig.made_up_family import ASKED, END, IMAGE, START, MadeUpModel, MadeUpProcessor, write_made_up_model
from trials.rig.run_flags import run_flags
from vlm2vec import VLM2Vec
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError
from vlm2vec.export.merging import merged_weights
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, ItemImage
from vlm2vec.model_folder.weights import at_hand, folder_weights
from vlm2vec.plan.estimate import RunPlan
from vlm2vec.plan.run_plan import make_plan, parse_cluster
from vlm2vec.plan.tables import tables
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.flags.run import parse_arguments

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made_up") / "base"
    write_made_up_model(folder)
    return folder


def image(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def items() -> list[EncodeItem]:
    """Texts, images of several heights, both, and two images in either order."""
    tall, flat = image(1, 30, 100), image(2, 90, 20)

    def item(text: str, *images: Image.Image) -> EncodeItem:
        return EncodeItem(text, tuple(ItemImage(each, "image") for each in images), "item")

    return [
        *(item("a"), item("a longer text " * 9), item("", tall), item("<|image_1|> what is it", flat)),
        *(item("<|image_1|> or <|image_2|>", tall, flat), item("<|image_2|> or <|image_1|>", tall, flat)),
    ]


def test_files_have_names_of_their_own(model: Path, tmp_path: Path) -> None:
    loaded, published = MadeUpModel.from_pretrained(model), load_file(model / "model.safetensors")
    own = dict(loaded.named_parameters())
    assert len(own) == len(published) - 1
    assert all(torch.equal(each, published[MadeUpModel.published_name(name)]) for name, each in own.items())
    assert not own.keys() >= published.keys() - {MadeUpModel.tensor_names.head}
    loaded.save_pretrained(tmp_path)
    again = load_file(tmp_path / "model.safetensors")
    assert published.keys() - again.keys() == {MadeUpModel.tensor_names.head}
    assert all(torch.equal(each, published[name]) for name, each in again.items())


def test_the_dummy_reaches_what_an_image_reaches_and_changes_nothing(model: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model, dtype=torch.float32).train()
    text = ItemEncoderInputs(encoder.processor, None).chunk_of(items()[:2])
    of_images = {each for part in encoder.base.vision_modules() for each in part.parameters()}
    vectors = {}
    for is_dummy in (False, True):
        encoder.zero_grad()
        vectors[is_dummy] = encoder(**text.arguments(encoder.device, dummy_image=is_dummy))
        vectors[is_dummy].sum().backward()
        gradients = [each.grad for each in of_images]
        assert all((each is not None) is is_dummy for each in gradients)
        assert not any(each.any() for each in gradients if each is not None)
    assert torch.equal(vectors[False], vectors[True])
    used = {each for each in encoder.parameters() if each.requires_grad}
    assert all(each.grad is not None for each in used)


def test_vectors_do_not_depend_on_neighbours(model: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model)
    inputs, made = ItemEncoderInputs(encoder.processor, encoder.max_len), items()
    with torch.no_grad():
        together = encoder(**inputs.chunk_of(made).arguments(encoder.device, dummy_image=False))
        alone = [encoder(**inputs.chunk_of([each]).arguments(encoder.device, dummy_image=False)) for each in made]
    assert_close_relative(torch.cat(alone), together, 1e-5)
    texts, images = [each.text for each in made], [[one.source for one in each.images] or None for each in made]
    for batch_tokens in (1, 60, 10**6):
        assert_close_relative(encoder.encode(texts, images, batch_tokens=batch_tokens), together, 1e-5)
    differences = [relative_error(one, other) for index, one in enumerate(together) for other in together[:index]]
    assert min(differences) > 1e-2


def test_what_planning_counts_is_what_is_made(model: Path) -> None:
    inputs = ItemEncoderInputs(MadeUpProcessor.from_pretrained(model), max_len=40)
    for each in [
        *items(),
        EncodeItem("", (ItemImage(image(3, *inputs.processor.largest_image_size), "largest"),), "x"),
    ]:
        measured, made = inputs.measure_item(each), inputs.process(each)
        assert (measured.num_tokens, measured.vision_units) == (len(made.input_ids), made.vision_units)
        assert measured.vision_tokens == made.vision_units / 2
        assert (made.input_ids == IMAGE).sum() == made.vision_units / 2
    assert made.vision_units == inputs.largest_item().vision_units == 12


def test_prompts_are_the_formats(model: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model, prompt_format="asked", max_pixels=1024)
    assert encoder.processor.prompt_format == ASKED
    ids = encoder.processor.tokenize("<|image_1|> <end>", [2], instruction="Hm")
    assert [START, *map(ord_id, "Hm:["), IMAGE, IMAGE, *map(ord_id, "] <end>"), END] == ids
    assert encoder.processor.num_vision_units(8, 100) == 4
    with pytest.raises(InputError, match=r"num_crops: a made_up has no such limit.* max_pixels"):
        VLM2Vec.from_pretrained(model, num_crops=4)
    with pytest.raises(InputError, match=r"other.* plain, asked"):
        VLM2Vec.from_pretrained(model, prompt_format="other")


@pytest.fixture(scope="module")
def planned(model: Path) -> RunPlan:
    flags = run_flags(model, model, model, "zero2", "--global_batch_size", "64", "--max_steps", "1")
    cluster, workload, _ = parse_cluster(["--gpus", "2", "--gpu_memory", "80", "--image_size", "40x70"])
    return make_plan(parse_arguments([*flags, "--chunk_tokens", "256"]), cluster, workload)


def test_a_plan_counts_what_a_run_makes(planned: RunPlan, model: Path) -> None:
    """Parameters, chunks, FLOPs, and what autograd keeps, of a chunk of real images."""
    encoder = VLM2Vec.from_pretrained(model, dtype=torch.float32).train()
    inputs = ItemEncoderInputs(encoder.processor, 256)
    text = "t" * (planned.workload.text_tokens - 4)  # beside <start>[]<end>
    item = inputs.process(EncodeItem(f"<|image_1|>{text}", (ItemImage(image(0, 40, 70), "image"),), "item"))
    assert any("(stripes)" in str(each) for each in tables(planned))
    assert planned.size.total == sum(each.numel() for each in encoder.parameters())
    assert planned.size.vision == sum(
        each.numel() for part in encoder.base.vision_modules() for each in part.parameters()
    )
    assert (planned.image_tokens, planned.vision_units) == (len(item.input_ids), item.vision_units)
    assert planned.image_rows() == 256 // inputs.budget_tokens(item)
    chunk = inputs.chunk([item] * planned.image_rows())
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {each.untyped_storage().data_ptr() for each in encoder.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    # A kernel that keeps its scores, as is planned for a family that calls torch's attention itself.
    with (
        FlopCounterMode(display=False) as counter,
        saved_tensors_hooks(keep, lambda tensor: tensor),
        sdpa_kernel(SDPBackend.MATH),
    ):
        encoder(**chunk.arguments(encoder.device, dummy_image=False)).sum().backward()
    cost = planned.chunk_cost(checkpointing=False)
    assert sum(cost.flops) == counter.get_total_flops()
    assert cost.saved == pytest.approx(sum(each.nbytes() for each in kept.values()), rel=0.01)


@pytest.mark.parametrize("attention", ["flash_attention_2", "nonsense"])
def test_an_attention_that_a_family_does_not_have_is_one_line(attention: str, model: Path) -> None:
    with pytest.raises(
        InputError, match=f"^attn_implementation {attention}: not available for a made_up on this machine .*$"
    ):
        VLM2Vec.from_pretrained(model, attn_implementation=attention)


def test_where_images_alone_are_trained_texts_have_a_gradient_path(model: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model, dtype=torch.float32)
    assert not encoder.base.trains_images_alone
    encoder.add_lora(LoraSettings(r=2, target_modules=["first", "late"]))
    assert encoder.base.trains_images_alone
    inputs = ItemEncoderInputs(encoder.processor, None, always_dummy=encoder.base.trains_images_alone)
    text = inputs.chunk_of(items()[:2])
    encoder(**text.arguments(encoder.device, dummy_image=False)).sum().backward()
    assert all(each.grad is not None and not each.grad.any() for each in encoder.parameters() if each.requires_grad)


def test_parts_are_frozen(model: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model)
    encoder.freeze(vision_tower=True)
    encoder.add_lora(LoraSettings(r=2))
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in encoder.named_parameters() if ".lora_A" in name}
    assert adapted == {"look", "tell", "widen", "narrow", "late"}


def test_an_adapter_names_single_layers_as_published_files_do(model: Path, tmp_path: Path) -> None:
    """Where a target is partly frozen, its other layers are listed by their whole names."""
    encoder = VLM2Vec.from_pretrained(model, dtype=torch.float32)
    encoder.base.layers[0].look.requires_grad_(False)
    encoder.add_lora(LoraSettings(r=2, target_modules=["look", "tell"]))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.uniform_(-1, 1)
    encoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [
        "tell",
        "text.blocks.1.look",
    ]
    again = VLM2Vec.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(again.encode(["a text"]), encoder.eval().encode(["a text"]))
    assert not torch.equal(again.encode(["a text"]), VLM2Vec.from_pretrained(model).encode(["a text"]))
    adapted = get_peft_model_state_dict(encoder.backbone, save_embedding_layers=False)
    weights = {name.replace(".weight", ".default.weight"): at_hand(each) for name, each in adapted.items()}
    weights = {
        name.replace("magnitude_vector", "magnitude_vector.default.weight"): each for name, each in weights.items()
    }
    merged = merged_weights(folder_weights(model), weights, encoder.base.config, tmp_path)
    encoder.merge_lora()
    expected = encoder.base.layers[1].look.weight
    assert_close_relative(merged["text.blocks.1.look.weight"].read(), expected, 1e-6)


def test_a_family_without_compiled_layers_refuses_the_flag(model: Path) -> None:
    flags = run_flags(model, model, model, "zero2", "--global_batch_size", "2", "--max_steps", "1", "--compile_layers")
    settings = parse_arguments(flags).resolve(2, {"zero_optimization": {"stage": 2}}).encoder
    with pytest.raises(InputError, match="--compile_layers: no effect, a made_up model has no layers to compile"):
        build_encoder(settings)


def ord_id(letter: str) -> int:
    return 4 + ord(letter)
