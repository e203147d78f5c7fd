"""The suites of `make bench`: one program each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """One section of docs/benchmarks.md.

    Attributes:
        title: Of the section.
        command: What follows `python -m`.
        text: What the figures mean.
        limit_seconds: After so long it is ended.
        is_long: Runs only when it is named.
        needs_gpu: Without one, a section that holds a GPU's figures stays as it is.
    """

    title: str
    command: str
    text: str
    limit_seconds: int = 600
    is_long: bool = False
    needs_gpu: bool = False


SUITES = {
    "flops": Suite(
        "FLOPs of one item, full size",
        "benchmarks.flops",
        "Counted on the meta device. The original's way: CLIP on zero crops and through its last layer, `lm_head` at "
        "every position.",
    ),
    "step": Suite(
        "One training step against other ways of making it",
        "benchmarks.step",
        "One process, the same batches and weights, AdamW on all parameters, images decoded before; the losses "
        "are compared. The original's algorithm is written anew in benchmarks/original_step.py; "
        "on MMEB's lengths it is faster than the original's real code, which took "
        "2.3 to 3.6 times this code's time.",
    ),
    "dora": Suite(
        "DoRA beside PEFT's own",
        "benchmarks.dora",
        "One CPU rank, processor seconds, the best of ten alternating rounds; the losses are compared. Plain LoRA "
        "shows what DoRA costs at all. Full size: forward and backward of a chunk of ten images, counted on the "
        "meta device with bfloat16 weights under autocast; GB are the sizes of all operators' inputs and outputs. "
        "The weights' norms are computed in a step's first call. Dropout on the adapter's input alone is compared "
        "with PEFT's on the input, which is all that PEFT has.",
        limit_seconds=1200,
    ),
    "qwen_vl": Suite(
        "Encoding with the Qwen-VL families beside transformers",
        "benchmarks.qwen_vl",
        "The tests' tiny models in the models' own chat template; half of the items have an image of 336 x 336 to "
        "640 x 480 pixels. transformers encodes one padded batch with `Qwen2VLImageProcessorPil`, its tokenizer and "
        "its model without an output head; this code packs items by length as `encode` does. One thread, processor "
        "seconds, the ways take turns. `tensors`: both forwards get ready batches; `processed items`: this code also "
        "normalises patches and joins items, transformers gets its ready batch; `texts and images`: everything.",
        limit_seconds=1800,
    ),
    "padding": Suite(
        "Padding",
        "benchmarks.padding",
        "A chunk ends where the next item is more than 10 % shorter than its first; `before` fills the budget whatever "
        "the width. Shares of the real tokens. Pass 1 may hold four times the budget.",
    ),
    "overhead": Suite(
        "The cached step against a plain one",
        "benchmarks.overhead",
        "A batch that fits into memory in one graph. Without kept graphs every forward runs twice: a backward costs "
        "two forwards, so 4/3 is what that way can reach.",
    ),
    "memory": Suite(
        "Peak memory over the global batch",
        "benchmarks.memory",
        "A training process at a fixed chunk budget; images are decoded while the step runs.",
        limit_seconds=1200,
    ),
    "communication": Suite(
        "Bytes and calls a step",
        "benchmarks.communication",
        "float32 parameters. ZeRO-3's all-gathers are parameters: once a call without graph, twice a call with one.",
    ),
    "export": Suite(
        "Memory of an export",
        "benchmarks.export",
        "Made-up checkpoints, files of at most 50 MB. `peak` is anonymous memory above what Python and the libraries "
        "need before anything is read (`process` includes that); mapped files are not counted.",
        limit_seconds=1200,
    ),
    "evaluation": Suite(
        "Scoring the miniature, beside the original's loop",
        "benchmarks.evaluation",
        "One rank and its decoding workers, whose CPU seconds count; medians of three alternating rounds. The loop's "
        "time is that of reading images and encoding; beside it stand the same part of `eval.mmeb` and more of it, "
        "to the whole program, which also reads the datasets, loads the model, ranks and writes.",
        limit_seconds=1200,
    ),
    "evaluation_size": Suite(
        "An evaluation of MMEB-eval's size",
        "benchmarks.evaluation_size",
        "MMEB-eval's numbers of queries and candidates, the miniature's images under different texts, its model. "
        "Memory is that of the program without its two decoding workers.",
        limit_seconds=2400,
        is_long=True,
    ),
    "retrieval_size": Suite(
        "A corpus of 200,000 pages",
        "benchmarks.retrieval_size",
        "Visual documents in MMEB-V2's form, small grey images of which each is different, the miniature's model. The "
        "files of all runs are compared: vectors, ranked lists, run files, scores.",
        limit_seconds=7200,
        is_long=True,
    ),
    "data": Suite(
        "The converter beside tar",
        "benchmarks.data",
        "20,000 images, alternating rounds, both with their bytes synced to disk. The converter also checksums the "
        "tars, hashes every image and writes the index.",
        limit_seconds=1200,
    ),
    "million_rows": Suite(
        "A million rows converted and verified",
        "benchmarks.million_rows",
        "The 20 subsets in MMEB-train's proportions, tiny images that rows reuse, every image decoded. Memory is "
        "that of the program and its workers together.",
        limit_seconds=3600,
        is_long=True,
    ),
    "mining": Suite(
        "A million pairs mined",
        "benchmarks.mining",
        "Two ranks with one thread each; memory is the sum of all processes. First row: 20 subsets of 50,000 pairs, of "
        "which vectors of 64 numbers are ready, so planning, ranking (exact), rules, clusters and writing are left. "
        "Second row: everything, with the tiny model, on pairs with tiny images in MMEB-train's proportions.",
        limit_seconds=7200,
        is_long=True,
    ),
    "plan": Suite(
        "The plan's memory beside what engines hold",
        "trials.plan_error --model_name demo/untrained",
        "After `make demo`. Bytes of tensors in KiB, which do not depend on the device, between steps and at the most "
        "while chunks run. GPU: not measured; what its allocator rounds up and what libraries take comes on top.",
        is_long=True,
    ),
    "kills": Suite(
        "The converter killed and started again",
        "trials.kills --trials 20",
        "Two workers; SIGKILL at random moments, to all processes or to the program alone, once or three times. At the "
        "end the shards are compared with those of an undisturbed run byte by byte.",
        limit_seconds=1800,
        is_long=True,
    ),
    "chaos": Suite(
        "Training killed and resumed",
        "trials.chaos --trials 50",
        "`make chaos`: SIGKILL at random moments, half of them in a save, once or twice a run. Bit-equal: the last "
        "checkpoint (weights, moments, schedule, random states) and the log are those of an undisturbed run.",
        limit_seconds=3600,
        is_long=True,
    ),
    "order": Suite(
        "The global order over a million rows",
        "benchmarks.order",
        "A step's samples and their layout on all ranks; steps of 100 epochs in random order. `first step of an epoch` "
        "counts only where a whole epoch has to be looked at: in the other orders no step costs more than any other. "
        "Indexes and peak are what the process grows by, the baseline's too.",
    ),
    "loader": Suite(
        "The loader beside bare decoding and cropping",
        "benchmarks.loader",
        "The loader also computes the order, reads, checks, tokenises and joins chunks; its planner is a process of "
        "its own, which counts.",
        limit_seconds=1800,
    ),
    "startup": Suite(
        "Import time and time to the first step",
        "benchmarks.startup",
        "Best of the rounds. What a run builds before its first step: ranks, shards, model, engine, loader processes.",
    ),
    "recipes": Suite(
        "What wins points on the miniature",
        "benchmarks.recipes",
        "After `make demo`, whose trained model is trained further: with its own recipe, and with one thing more. "
        "The hardness weight of LLaVE; batches made of 4 units of 32 rows of one subset, which mined clusters need; "
        "clusters of 32 mutually hard pairs as in B3; 4 hard negatives a row. What is mined is mined by that "
        "model. Precision@1 is the mean over the miniature's 18 datasets. A difference below two standard deviations "
        "says little.",
        limit_seconds=6 * 3600,
        is_long=True,
    ),
    "gpu": Suite(
        "Full-size Phi-3.5-V on one GPU",
        "benchmarks.gpu",
        "Random weights, 4 crops, MMEB's mix of lengths, one rank, ZeRO-2. MFU counts the model's own FLOPs of one "
        "forward and backward pass over the items: no recomputation, no padding, no second product with the frozen "
        "weights, which DoRA with dropout needs; `on what runs` counts all of these. In brackets the plan's memory. "
        "`benchmarks/gpu_first.sh` runs all of it in 8 minutes; `--tiny` runs the same code on a CPU.",
        limit_seconds=3600,
        needs_gpu=True,
    ),
}
