"""A flag's policy decides what a resume and the ranks compare, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vlm2vec.errors import InputError
from vlm2vec.training.checkpoints.record import RunRecord
from vlm2vec.training.checkpoints.resume import changes
from vlm2vec.training.flags.option import given, option, refuse, unused_refusals
from vlm2vec.training.flags.parser import GROUPS
from vlm2vec.training.flags.run import POLICIES, argument_defaults, parse_arguments
from vlm2vec.training.preflight.compare_ranks import facts

NEEDED = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", "z.json"]
DATA = {"shards": "a", "order": "b"}
PLACES = {
    "model_name",
    "dataset_name",
    "deepspeed",
    "cache_dir",
    "eval_dataset_name",
    "eval_image_dir",
    "image_dir",
    "mined",
}


def arguments(*flags: str) -> Any:
    return parse_arguments([*NEEDED, "--max_steps", "9", "--global_batch_size", "16", *flags])


def test_every_flag_says_what_its_value_decides() -> None:
    fields = [field for group in GROUPS for field in dataclasses.fields(group)]
    assert len(fields) == len(POLICIES) == len({field.name for field in fields})
    assert set(argument_defaults()) == set(POLICIES) - {"local_rank"}
    assert {policy.effect for policy in POLICIES.values()} == {"result", "speed", "place"}
    for group in GROUPS:
        names = {field.name for field in dataclasses.fields(group)}
        assert {POLICIES[name].needs for name in names} - {None} <= names


@pytest.mark.parametrize("name", sorted(argument_defaults()))
def test_a_resume_refuses_another_value_if_the_flag_decides_the_result(name: str) -> None:
    now = arguments().resolve(2, {"zero_optimization": {"stage": 2}})
    before = {**json.loads(json.dumps(now.flags)), name: "another"}
    if POLICIES[name].compared_as == "global batch":
        before |= {"global_batch_size": None, "per_device_train_batch_size": 9}
    record = RunRecord(step=1, num_ranks=2, zero_stage=2, arguments=before, versions={}, data=DATA)
    found = changes(record, now.flags, now.cluster, DATA)
    if POLICIES[name].compared_as == "global batch":
        assert list(found) == ["global_batch_size"]
    else:
        assert list(found) == ([name] if POLICIES[name].effect == "result" and not POLICIES[name].compared_as else [])
    # What gives steps is compared as steps; nothing else may be left to something else.
    assert POLICIES[name].compared_as in (None, "global batch", "max_steps", "warmup_steps")


def test_only_these_flags_may_change_over_a_resume() -> None:
    """A list of its own: a flag with a wrong policy would let a resume continue as a different run."""
    free = {
        *("output_dir", "deepspeed", "dataset_name", "resume", "allow_changed", "image_dir", "local_rank", "mined"),
        *("attn_implementation", "gradient_checkpointing", "compile_layers", "deterministic", "loss_block_rows"),
        *("dataloader_num_workers", "cache_dir", "cache_gb", "max_bad_samples", "collective_timeout", "step_timeout"),
        *("chunk_tokens", "no_grad_chunk_tokens", "keep_graphs", "gc_q_chunk_size", "gc_p_chunk_size", "grad_cache"),
        *("report_to", "project"),
        *("logging_steps", "save_steps", "save_total_limit", "profile_steps", "flops_profile_step", "peak_tflops"),
        *("eval_steps", "eval_dataset_name", "eval_image_dir", "eval_allow_links", "eval_subsets", "save_best"),
    }
    assert {name for name, policy in POLICIES.items() if policy.effect != "result"} == free
    compared_otherwise = {name for name, policy in POLICIES.items() if policy.compared_as}
    assert compared_otherwise == {
        *("num_train_epochs", "warmup_ratio", "global_batch_size", "per_device_train_batch_size"),
    }
    chunks = {name for name, policy in POLICIES.items() if policy.decides_chunks}
    assert chunks == {"chunk_tokens", "no_grad_chunk_tokens", "keep_graphs", "gc_q_chunk_size", "gc_p_chunk_size"}


def test_ranks_compare_every_flag_but_those_of_a_nodes_places() -> None:
    compared = {name.removeprefix("--") for name in facts(arguments().as_dict()) if name.startswith("--")}
    assert set(argument_defaults()) - compared == PLACES - {"deepspeed"}  # its content is compared under its name
    assert {name for name, policy in POLICIES.items() if policy.per_node} == {*PLACES, "local_rank"}


@dataclasses.dataclass
class Group:
    adapter: bool = option(False, "An adapter.")
    rank: int = option(8, "Its rank.", needs="adapter")
    layers: list[str] = option(["all"], "Its layers.", "speed", needs="adapter")


def test_a_flag_that_needs_another_one_is_refused_without_it() -> None:
    assert given(Group(rank=4, layers=["a"]), ["rank", "layers"]) == ["--rank", "--layers"]
    for group in (Group(), Group(adapter=True, rank=4)):
        refuse(unused_refusals(group))
    with pytest.raises(InputError, match=r"^--rank, --layers: no effect without --adapter$"):
        refuse(unused_refusals(Group(rank=4, layers=["a"])))
    Group().layers.append("b")
    assert Group().layers == ["all"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_r", "4", "--lora_use_dora", "False"], "--lora_r, --lora_use_dora: no effect without --lora"),
        (["--allow_changed", "seed"], "--allow_changed: no effect without --resume"),
        (["--first_n"], "--first_n: no effect without --num_sample_per_subset"),
        (["--cache_gb", "9"], "--cache_gb: no effect on shards in a folder, only on those behind a URL"),
        (["--save_best"], "--save_best: no effect without --eval_steps"),
    ],
)
def test_what_would_be_ignored_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        arguments(*flags)
    assert str(refused.value) == message
