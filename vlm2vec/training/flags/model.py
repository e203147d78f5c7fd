"""Flags for the encoder: the model, its precision, what of it is trained."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.backbones.image_limits import ImageLimitFlags
from vlm2vec.dora import DROPOUT_PLACES
from vlm2vec.lora import LoraSettings
from vlm2vec.training.flags.option import REQUIRED, Refusal, option

# What records and config.yaml of older versions have for `lora_target_modules` where nobody gave it.
FORMER_TARGETS = "qkv_proj,o_proj,gate_up_proj,down_proj,k_proj,q_proj,out_proj,v_proj"


@dataclass
class _NamedModel:
    """The model, and what its folder says too."""

    model_name: str = option(REQUIRED, "Hugging Face folder of the base model.", per_node=True)
    pooling: str = option("eos", "Pooling: 'eos', the last token's hidden state (the only one that VLM2Vec has).")
    normalize: bool = option(True, "Scale embeddings to length 1; the loss compares cosines, so False is refused.")
    max_len: int | None = option(
        None,
        "Longest text-only item in tokens; items with images are never cut. If not given, what the model was saved "
        "with, else what the code has that its prompt format is of, else 256.",
    )


# Fields come in the order of the bases from right to left: the model's name is the first flag.
@dataclass
class ModelArguments(ImageLimitFlags, _NamedModel):
    """The encoder."""

    prompt_format: str | None = option(
        None,
        "How prompts are made of items: the name of a format that the model's family has. If not given, what the model "
        "was saved with, else the family's default.",
    )
    attn_implementation: str | None = option(
        None, "sdpa, eager or flash_attention_2; the best installed if not given.", "speed"
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: slower, less memory.", "speed"
    )
    compile_layers: bool = option(
        False,
        "Compile the decoder's and the vision tower's elementwise operators (norms, activations, rotary embedding, "
        "DoRA's scale) at their first calls (torch.compile): fewer, larger kernels, the same results up to rounding. "
        "Compiling takes about a minute, and needs Triton on a GPU.",
        "speed",
    )
    freeze_vision_tower: bool = option(False, "Do not train the vision tower, nor an adapter in it.")
    freeze_projector: bool = option(
        False, "Do not train the projector, which makes image tokens of the vision tower's output."
    )
    bf16: bool = option(False, "Compute in bfloat16; master weights, moments and the loss stay in float32.")
    lora: bool = option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = option(LoraSettings.r, "Rank of the adapter.", needs="lora")
    lora_alpha: int = option(LoraSettings.alpha, "Scale of the adapter.", needs="lora")
    lora_dropout: float = option(LoraSettings.dropout, "Dropout before the adapter.", needs="lora")
    lora_dropout_on: str = option(
        LoraSettings.dropout_on,
        "With DoRA: 'input' drops the input of the frozen product too, as the original does; 'adapter' drops the "
        "adapter's input alone, which saves one frozen product in every call.",
        needs="lora",
    )
    lora_use_dora: bool = option(
        LoraSettings.use_dora, "Weight-decomposed LoRA (DoRA), as the original trains.", needs="lora"
    )
    lora_target_modules: str | None = option(
        None,
        "Linear layers with an adapter, by the last part of their name or the last two (mlp.fc1), separated by "
        "commas; if not given, those that the model's family adapts. Layers that are frozen or never run get none.",
        needs="lora",
    )

    def __post_init__(self) -> None:
        if self.lora_target_modules is not None:
            names = (name.strip() for name in self.lora_target_modules.split(","))
            self.lora_target_modules = ",".join(name for name in names if name)
        if not self.lora and self.lora_target_modules == FORMER_TARGETS:
            self.lora_target_modules = None


def model_refusals(model: ModelArguments) -> list[Refusal]:
    """What cannot work or would be ignored."""
    return [
        (model.pooling not in ("eos", "last"), f"--pooling {model.pooling}: VLM2Vec pools the last token; use eos"),
        (not model.normalize, "--normalize False: the loss compares cosines; leave it True"),
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
