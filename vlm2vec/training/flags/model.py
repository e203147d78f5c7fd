"""Flags for the encoder: the model, its precision, and which of its parts are trained."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.backbones.image_limits import ImageLimitFlags
from vlm2vec.choices import DROPOUT_PLACES, LoraSettings
from vlm2vec.training.flags.option import REQUIRED, Refusal, option

# What checkpoints and config.yaml of older versions hold for `lora_target_modules` if the flag was not given.
FORMER_TARGETS = "qkv_proj,o_proj,gate_up_proj,down_proj,k_proj,q_proj,out_proj,v_proj"


@dataclass
class _NamedModel:
    """Model: the base model, and how an item becomes its input."""

    model_name: str = option(REQUIRED, "Hugging Face folder of the base model.", metavar="DIR", per_node=True)
    pooling: str = option(
        "eos", "Pooling. VLM2Vec has one kind: 'eos', the hidden state of the last token.", metavar="eos"
    )
    normalize: bool = option(
        True, "Scale embeddings to length 1. Must stay true in training: the loss compares cosines."
    )
    max_len: int | None = option(
        None,
        "Maximum length of a text-only item, in tokens; items with images are never truncated. If not given: the "
        "value that the model was saved with, else the one of the code that its prompt format comes from, else 256.",
    )


@dataclass(kw_only=True)
class _PromptFlags:
    prompt_format: str | None = option(
        None,
        "Name of a prompt format of the model's family. If not given: the format that the model was saved with, else "
        "the family's default.",
        metavar="NAME",
    )


@dataclass(kw_only=True)
class ComputeArguments:
    """Precision and memory: how the model computes, and which of its parts are not trained."""

    attn_implementation: str | None = option(
        None,
        "Attention kernels. If not given: the fastest that is installed.",
        "speed",
        metavar="sdpa|eager|flash_attention_2",
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: slower, but takes less memory.", "speed"
    )
    compile_layers: bool = option(
        False,
        "Compile the elementwise operators of the decoder and the vision tower (norms, activations, rotary embedding, "
        "DoRA's scale) at their first calls with torch.compile: fewer, larger kernels, and the same results up to "
        "rounding. Compiling takes about a minute; on a GPU it needs Triton.",
        "speed",
    )
    freeze_vision_tower: bool = option(False, "Do not train the vision tower, nor an adapter in it.")
    freeze_projector: bool = option(
        False, "Do not train the projector, which turns the vision tower's output into image tokens."
    )
    bf16: bool = option(False, "Compute in bfloat16; master weights, optimizer moments and the loss stay in float32.")


@dataclass(kw_only=True)
class LoraArguments:
    """LoRA: train an adapter instead of all weights."""

    lora: bool = option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = option(LoraSettings.r, "Rank of the adapter.", needs="lora")
    lora_alpha: int = option(
        LoraSettings.alpha, "Scale of the adapter: its output is multiplied by lora_alpha / lora_r.", needs="lora"
    )
    lora_dropout: float = option(LoraSettings.dropout, "Dropout probability at the adapter's input.", needs="lora")
    lora_dropout_on: str = option(
        LoraSettings.dropout_on,
        "What dropout applies to with DoRA. 'input': also the input of the frozen product, as in the original code. "
        "'adapter': the adapter's input only, which saves one frozen product per call.",
        metavar="|".join(DROPOUT_PLACES),
        needs="lora",
    )
    lora_use_dora: bool = option(
        LoraSettings.use_dora, "Train weight-decomposed LoRA (DoRA), as the original code does.", needs="lora"
    )
    lora_target_modules: str | None = option(
        None,
        "Linear layers that get an adapter, separated by commas, by the last part of their name or the last two "
        "(mlp.fc1). If not given: those of the model's family. Layers that are frozen or never run get no adapter.",
        metavar="NAME,NAME",
        needs="lora",
    )


# Fields come in the order of the bases from right to left: the model's name is the first flag.
@dataclass
class ModelArguments(LoraArguments, ComputeArguments, _PromptFlags, ImageLimitFlags, _NamedModel):
    """Flags for the encoder."""

    def __post_init__(self) -> None:
        if self.lora_target_modules is not None:
            names = (name.strip() for name in self.lora_target_modules.split(","))
            self.lora_target_modules = ",".join(name for name in names if name)
        if not self.lora and self.lora_target_modules == FORMER_TARGETS:
            self.lora_target_modules = None


def model_refusals(model: ModelArguments) -> list[Refusal]:
    """Values that cannot work or would be ignored."""
    return [
        (model.pooling not in ("eos", "last"), f"--pooling {model.pooling}: VLM2Vec pools the last token; use eos"),
        (not model.normalize, "--normalize False: the loss compares cosines; leave it true"),
        (
            model.lora and model.freeze_projector,
            "--freeze_projector: no effect with --lora, which trains adapters only; --lora_target_modules says where",
        ),
        (
            model.lora_dropout_on not in DROPOUT_PLACES,
            f"--lora_dropout_on {model.lora_dropout_on}: expected {' or '.join(DROPOUT_PLACES)}",
        ),
        (
            model.lora_dropout_on == "adapter" and not (model.lora_use_dora and model.lora_dropout > 0),
            "--lora_dropout_on adapter: no effect without DoRA and dropout; leave it out",
        ),
        (model.lora_r < 1, f"--lora_r {model.lora_r}: must be at least 1"),
        (model.lora_alpha <= 0, f"--lora_alpha {model.lora_alpha}: must be positive"),
        (not 0 <= model.lora_dropout < 1, f"--lora_dropout {model.lora_dropout}: must be at least 0 and below 1"),
    ]
