"""What a run is told: typed fields beside their help, YAML recipes and flags, refusals with their remedy."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from vlm2vec.dora import DROPOUT_PLACES
from vlm2vec.errors import InputError, OneLineErrors
from vlm2vec.messages.old_names import TRAINING
from vlm2vec.training.flags.checkpoint import CheckpointArguments, checkpoint_refusals
from vlm2vec.training.flags.cluster import ClusterArguments, cluster_refusals
from vlm2vec.training.flags.data import DataArguments, data_refusals
from vlm2vec.training.flags.evaluation import EvaluationArguments, evaluation_refusals
from vlm2vec.training.flags.length import length_refusals
from vlm2vec.training.flags.option import option
from vlm2vec.training.flags.recipe import recipe_flags
from vlm2vec.training.flags.watch import WatchArguments, watch_refusals

DEFAULT_CHUNK_TOKENS = 8192
# Without a graph a chunk needs a fraction of the memory.
NO_GRAD_FACTOR = 4


@dataclass
class ModelArguments:
    """The encoder."""

    model_name: str = field(metadata={"help": "Hugging Face folder of the base model."})
    pooling: str = option("eos", "Pooling: 'eos', the last token's hidden state (the only one that VLM2Vec has).")
    normalize: bool = option(True, "Scale embeddings to length 1; the loss compares cosines, so False is refused.")
    max_len: int | None = option(
        None,
        "Longest text-only item in tokens; items with images are never cut. If not given, what the model was saved "
        "with, else 256.",
    )
    num_crops: int | None = option(
        None, "Crops an image at most; if not given, what the model was saved with, else what its processor says."
    )
    attn_implementation: str | None = option(None, "sdpa, eager or flash_attention_2; the best installed if not given.")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: slower, less memory.")
    compile_layers: bool = option(
        False,
        "Compile the decoder's and the vision tower's layers at their first calls (torch.compile): fewer, larger "
        "kernels, the same results up to rounding. Not under ZeRO-3. Not measured on a GPU yet, therefore off.",
    )
    freeze_vision_tower: bool = option(False, "Do not train CLIP, nor an adapter in it.")
    freeze_projector: bool = option(False, "Do not train the image projection and the separators.")
    bf16: bool = option(False, "Compute in bfloat16; master weights, moments and the loss stay in float32.")
    lora: bool = option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = option(16, "Rank of the adapter.")
    lora_alpha: int = option(64, "Scale of the adapter.")
    lora_dropout: float = option(0.1, "Dropout before the adapter.")
    lora_dropout_on: str = option(
        "input",
        "With DoRA: 'input' drops the input of the frozen product too, as the original does; 'adapter' drops the "
        "adapter's input alone, which saves one frozen product in every call.",
    )
    lora_use_dora: bool = option(True, "Weight-decomposed LoRA (DoRA), as the original trains.")
    lora_target_modules: str = option(
        "qkv_proj,o_proj,gate_up_proj,down_proj,k_proj,q_proj,out_proj,v_proj",
        "Linear layers with an adapter, by the last part of their name or the last two (img_projection.0), separated "
        "by commas. Layers that are frozen or never run get none.",
    )

    def __post_init__(self) -> None:
        names = (name.strip() for name in self.lora_target_modules.split(","))
        self.lora_target_modules = ",".join(name for name in names if name)


@dataclass
class TrainingArguments(CheckpointArguments, ClusterArguments, WatchArguments):
    """The run."""

    output_dir: str = field(metadata={"help": "Folder of the run: checkpoints, log, TensorBoard."})
    deepspeed: str = field(metadata={"help": "DeepSpeed configuration, such as ds_configs/zero2.json."})
    max_steps: int = option(0, "Steps to train. Or give --num_train_epochs.")
    num_train_epochs: float | None = option(None, "Epochs to train, whole or not; --max_steps follows from the data.")
    global_batch_size: int | None = option(None, "Pairs a step over all ranks.")
    per_device_train_batch_size: int | None = option(
        None, "Pairs a step and rank; the global batch then depends on the cluster. Or give --global_batch_size."
    )
    grad_cache: bool = option(True, "Cached step; False is refused: a large --chunk_tokens runs one chunk.")
    chunk_tokens: int | None = option(
        None, f"Token budget of a chunk, padding counted; {DEFAULT_CHUNK_TOKENS} if not given."
    )
    no_grad_chunk_tokens: int | None = option(
        None, f"Token budget of the pass without a graph; {NO_GRAD_FACTOR} times the other, with dropout equal to it."
    )
    keep_graphs: str = option(
        "auto", "So many chunks keep their graph from pass 1 and do not run twice; auto = as many as fit, 1 on a CPU."
    )
    gc_q_chunk_size: int | None = option(None, "Queries a chunk, instead of a token budget.")
    gc_p_chunk_size: int | None = option(None, "Targets a chunk, instead of a token budget.")
    temperature: float = option(0.02, "Temperature of the loss.")
    learn_temperature: bool = option(False, "Train the temperature, starting at --temperature.")
    temperature_learning_rate: float = option(1e-3, "Peak learning rate of the temperature's logarithm.")
    bidirectional: bool = option(False, "Also from targets to queries; the original goes from queries to targets.")
    matryoshka_dims: list[int] = field(
        default_factory=list,
        metadata={"help": "Leading dimensions to train as embeddings of their own, such as 3072 1024 256."},
    )
    hard_negatives: bool = option(False, "Let the data's hard negatives take part; the original never uses them.")
    mask_false_negatives: bool = option(False, "Leave out negatives that are the same item as the row's target.")
    loss_block_rows: int | None = option(
        None, "Rows of the similarity matrix in memory at a time; so many that they hold a million scores if not given."
    )
    learning_rate: float = option(2e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = option("linear", "Schedule after the warm-up, by transformers' names.")
    warmup_steps: int = option(0, "Steps over which the learning rate rises from 0.")
    warmup_ratio: float | None = option(None, "Share of all steps that is warm-up, instead of --warmup_steps.")
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    adam_beta1: float = option(0.9, "First moment's decay.")
    adam_beta2: float = option(0.999, "Second moment's decay.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = option(1.0, "Clip the gradient's norm to this; 0 does not clip.")
    seed: int = option(42, "Seed of the order, the initial adapter and dropout.")
    deterministic: bool = option(
        False, "Use only kernels that give the same bits in every run: a resume on GPUs is then equal bit for bit."
    )
    logging_steps: int = option(10, "Write a line every so many steps.")


@dataclass(frozen=True)
class RunArguments:
    """All arguments of a run, checked."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)

    def global_batch_size(self, num_ranks: int) -> int:
        """Pairs a step over all ranks."""
        if self.training.global_batch_size is not None:
            return self.training.global_batch_size
        assert self.training.per_device_train_batch_size is not None
        return self.training.per_device_train_batch_size * num_ranks

    def as_dict(self) -> dict[str, Any]:
        """The resolved arguments by flag name, for the run's records."""
        return {
            name: value
            for group in (self.model, self.data, self.training, self.evaluation)
            for name, value in dataclasses.asdict(group).items()
            if name != "local_rank"
        }


def argument_defaults() -> dict[str, Any]:
    """All arguments by flag name with their defaults; those without one are empty."""
    return RunArguments(ModelArguments(""), DataArguments(""), TrainingArguments("", "", 0)).as_dict()


class _Parser(OneLineErrors, HfArgumentParser):
    old_names = TRAINING


def parse_arguments(argv: Sequence[str], defaults: Sequence[str] = (), also_known: Iterable[str] = ()) -> RunArguments:
    """Parses flags; `--config FILE.yaml` supplies what the flags do not say, `defaults` what neither says.

    Args:
        argv: The flags.
        defaults: Flags that a recipe and `argv` may give anew.
        also_known: Flags that the caller has taken out of `argv`, to be proposed for mistyped ones.

    Raises:
        InputError: An unknown flag or key, a wrong type, a refused combination; the message names the remedy.
    """
    groups_of_flags = (ModelArguments, DataArguments, TrainingArguments, EvaluationArguments)
    parser = _Parser(groups_of_flags, prog="vlm2vec.train", allow_abbrev=False)  # type: ignore[misc, arg-type]
    parser.add_argument("--config", help="YAML file with flags by name; flags on the command line win.")
    parser.add_argument(
        "--dry_run", action="store_true", help="Print the run's plan and end; takes the flags of vlm2vec.plan too."
    )
    parser.refuse_unknown(argv, also_known)
    recipe = recipe_flags(_config_path(argv), parser, argv)
    *groups, rest = parser.parse_args_into_dataclasses(
        [*defaults, *recipe, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise InputError(f"unknown option {rest[0]}; {parser.prog} --help lists the options")
    arguments = RunArguments(*groups[:4])
    _check(arguments)
    return arguments


def _config_path(argv: Sequence[str]) -> Path | None:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            return Path(os.path.expanduser(argv[index + 1]))
        if word.startswith("--config="):
            return Path(os.path.expanduser(word.removeprefix("--config=")))
    return None


def _check(arguments: RunArguments) -> None:
    """Refuses what cannot work or would be ignored, with the remedy."""
    model, data, training = arguments.model, arguments.data, arguments.training
    lora_options = [
        f"--{each.name}"
        for each in dataclasses.fields(model)
        if each.name.startswith("lora_") and getattr(model, each.name) != each.default
    ]
    fixed = (training.gc_q_chunk_size, training.gc_p_chunk_size)
    refusals = [
        (model.pooling not in ("eos", "last"), f"--pooling {model.pooling}: VLM2Vec pools the last token; use eos"),
        (not model.normalize, "--normalize False: the loss compares cosines; leave it True"),
        (not training.grad_cache, "--grad_cache False: every step is cached; a large --chunk_tokens runs one chunk"),
        *data_refusals(data),
        *evaluation_refusals(arguments.evaluation),
        (data.image_dir is not None, "--image_dir: shards carry their pictures; give it to data_prep.convert"),
        (
            (training.global_batch_size is None) == (training.per_device_train_batch_size is None),
            "give either --global_batch_size or --per_device_train_batch_size",
        ),
        ((fixed[0] is None) != (fixed[1] is None), "give both --gc_q_chunk_size and --gc_p_chunk_size, or neither"),
        (any(size is not None and size < 1 for size in fixed), f"chunk sizes must be at least 1, not {fixed}"),
        *length_refusals(training.max_steps, training.num_train_epochs, training.warmup_steps, training.warmup_ratio),
        (training.logging_steps < 1, f"--logging_steps {training.logging_steps}: must be at least 1"),
        (
            training.chunk_tokens is not None and training.chunk_tokens < 1,
            f"--chunk_tokens {training.chunk_tokens}: must be at least 1",
        ),
        (
            training.keep_graphs != "auto" and not training.keep_graphs.isdecimal(),
            f"--keep_graphs {training.keep_graphs}: must be 'auto' or a number",
        ),
        (
            training.no_grad_chunk_tokens is not None and fixed != (None, None),
            "--no_grad_chunk_tokens: no effect with --gc_q_chunk_size, which fixes the chunks of both passes",
        ),
        (
            training.no_grad_chunk_tokens is not None
            and training.no_grad_chunk_tokens < (training.chunk_tokens or DEFAULT_CHUNK_TOKENS),
            f"--no_grad_chunk_tokens {training.no_grad_chunk_tokens}: must be at least --chunk_tokens",
        ),
        (
            training.chunk_tokens is not None and fixed != (None, None),
            "--chunk_tokens and --gc_q_chunk_size/--gc_p_chunk_size exclude each other: give one kind",
        ),
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
        (not model.lora and bool(lora_options), f"{', '.join(lora_options)}: no effect without --lora"),
        (model.lora_r < 1, f"--lora_r {model.lora_r}: must be at least 1"),
        (model.lora_alpha <= 0, f"--lora_alpha {model.lora_alpha}: must be positive"),
        (not 0 <= model.lora_dropout < 1, f"--lora_dropout {model.lora_dropout}: must be at least 0 and below 1"),
        (training.temperature <= 0, f"--temperature {training.temperature}: must be positive"),
        (
            training.temperature_learning_rate != 1e-3 and not training.learn_temperature,
            "--temperature_learning_rate: no effect without --learn_temperature",
        ),
        (
            model.compile_layers and training.flops_profile_step is not None,
            f"--flops_profile_step {training.flops_profile_step}: the profile does not see the operators of compiled "
            "layers; leave out --compile_layers for it",
        ),
        *checkpoint_refusals(training),
        *cluster_refusals(training),
    ]
    if training.max_steps:
        refusals += _step_refusals(training)
    _refuse(refusals)


def with_steps(arguments: RunArguments, steps_per_epoch: int) -> RunArguments:
    """The arguments with `max_steps` and `warmup_steps` as numbers, whatever they were given by.

    Both are rounded up, as transformers' Trainer does.

    Raises:
        InputError: A flag that names a step behind the last one.
    """
    training = arguments.training
    steps, warmup = training.max_steps, training.warmup_steps
    if training.num_train_epochs is not None:
        steps = math.ceil(training.num_train_epochs * steps_per_epoch)
    if training.warmup_ratio is not None:
        warmup = math.ceil(training.warmup_ratio * steps)
    training = dataclasses.replace(training, max_steps=steps, warmup_steps=warmup)
    _refuse(_step_refusals(training))
    return dataclasses.replace(arguments, training=training)


def _step_refusals(training: TrainingArguments) -> list[tuple[bool, str]]:
    """What does not fit the number of steps."""
    return [
        *watch_refusals(training, training.max_steps),
        (
            training.warmup_steps > training.max_steps,
            f"--warmup_steps {training.warmup_steps} is more than --max_steps {training.max_steps}",
        ),
    ]


def _refuse(refusals: Iterable[tuple[bool, str]]) -> None:
    for refused, message in refusals:
        if refused:
            raise InputError(message)
