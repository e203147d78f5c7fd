"""The suites of `make bench`: one program each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """One section of docs/benchmarks.md.

    Attributes:
        title: The section's title.
        command: The module and flags after `python -m`.
        text: The meaning of the numbers.
        limit_seconds: The time limit.
        is_long: Whether it runs only when it is named.
        needs_gpu: Whether a section with a GPU's numbers is kept on a machine without one.
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
        "Counted on the meta device. The original also runs CLIP on zero crops and through its last layer, and "
        "`lm_head` at every position.",
    ),
    "step": Suite(
        "One training step compared with other implementations",
        "benchmarks.step",
        "One process, the same batches and weights, AdamW on all parameters, images already decoded; the losses "
        "are compared. benchmarks/original_step.py is our own implementation of the original's algorithm. On "
        "MMEB's lengths it is faster than the original's real code, which took 2.3 to 3.6 times this code's time.",
    ),
    "dora": Suite(
        "DoRA compared with PEFT's",
        "benchmarks.dora",
        "One CPU rank, processor seconds, the best of ten alternating rounds; the losses are compared. Plain LoRA "
        "is listed to show the total cost of DoRA. Full size: forward and backward of a chunk of ten images, "
        "counted on the meta device with bfloat16 weights under autocast; GB are the sizes of all operators' "
        "inputs and outputs. The weights' norms are computed in a step's first call. Dropout on the adapter's "
        "input alone is compared with PEFT's dropout on the input, because PEFT has no other.",
        limit_seconds=1200,
    ),
    "qwen_vl": Suite(
        "Encoding with the Qwen-VL families, compared with transformers",
        "benchmarks.qwen_vl",
        "The tests' tiny models in the models' own chat template; half of the items have an image of 336 x 336 to "
        "640 x 480 pixels. transformers encodes one padded batch with `Qwen2VLImageProcessorPil`, its tokenizer "
        "and its model without an output head; this code packs items by length as `encode` does. One thread, "
        "processor seconds, the two alternate. `tensors`: both forward passes get ready batches. `processed "
        "items`: this code also normalizes patches and collates items, transformers gets its ready batch. `texts "
        "and images`: everything.",
        limit_seconds=1800,
    ),
    "padding": Suite(
        "Padding",
        "benchmarks.padding",
        "A chunk ends where the next item is more than 10 % shorter than its first; `before` fills the budget "
        "whatever the length. Numbers are shares of the real tokens. Pass 1 may use four times the budget.",
    ),
    "overhead": Suite(
        "The cached step compared with a plain step",
        "benchmarks.overhead",
        "A batch that fits into memory as one graph. Without kept graphs every forward pass runs twice. A "
        "backward pass costs two forward passes, so 4/3 is the best possible ratio.",
    ),
    "memory": Suite(
        "Peak memory over the global batch",
        "benchmarks.memory",
        "A training process at a fixed chunk budget; images are decoded while the step runs.",
        limit_seconds=1200,
    ),
    "communication": Suite(
        "Bytes and calls per step",
        "benchmarks.communication",
        "float32 parameters. ZeRO-3's all-gathers are those of parameters: once per call without a graph, twice "
        "per call with one.",
    ),
    "export": Suite(
        "Memory of an export",
        "benchmarks.export",
        "Synthetic checkpoints, files of at most 50 MB. `peak` is anonymous memory without what Python and the "
        "libraries need before anything is read (`process` includes that); mapped files are not counted.",
        limit_seconds=1200,
    ),
    "evaluation": Suite(
        "Scoring the miniature, compared with the original's loop",
        "benchmarks.evaluation",
        "One rank and its decoding workers, whose CPU seconds are included; medians of three alternating rounds. "
        "The original's loop reads images and encodes. It is compared with the same part of `eval.mmeb`, with a "
        "larger part, and with the whole program, which also reads the datasets, loads the model, ranks and "
        "writes.",
        limit_seconds=1200,
    ),
    "evaluation_size": Suite(
        "An evaluation of MMEB-eval's size",
        "benchmarks.evaluation_size",
        "MMEB-eval's numbers of queries and candidates, with the miniature's model and images, which are reused "
        "with different texts. Memory is that of the program without its two decoding workers.",
        limit_seconds=2400,
        is_long=True,
    ),
    "retrieval_size": Suite(
        "A corpus of 200,000 pages",
        "benchmarks.retrieval_size",
        "Visual documents in MMEB-V2's layout: small, distinct grey images, with the miniature's model. The files "
        "of all runs are compared: vectors, ranked lists, run files, scores.",
        limit_seconds=7200,
        is_long=True,
    ),
    "data": Suite(
        "The converter compared with tar",
        "benchmarks.data",
        "20,000 images, alternating rounds, both with their bytes synced to disk. The converter also computes the "
        "tars' checksums, hashes every image and writes the index.",
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
        "Two ranks with one thread each; memory is the sum of all processes. First row: 20 subsets of 50,000 "
        "pairs whose vectors (64 numbers) exist already, so planning, exact ranking, rules, clusters and writing "
        "are measured. Second row: everything, with the tiny model, on pairs with tiny images in MMEB-train's "
        "proportions.",
        limit_seconds=7200,
        is_long=True,
    ),
    "plan": Suite(
        "The plan's memory compared with that of engines",
        "trials.plan_error --model_name demo/untrained",
        "After `make demo`. Bytes of tensors in KiB, which do not depend on the device, at rest between steps and "
        "at the peak while chunks run. Not measured on a GPU, where rounding by the allocator and the memory of "
        "libraries come on top.",
        is_long=True,
    ),
    "kills": Suite(
        "The converter killed and restarted",
        "trials.kills --trials 20",
        "Two workers; SIGKILL at random moments, to all processes or only to the main process, once or three "
        "times. At the end the shards are compared with those of an undisturbed run byte by byte.",
        limit_seconds=1800,
        is_long=True,
    ),
    "kills_own": Suite(
        "The converter killed and restarted: several images and negatives",
        "trials.kills --data own --trials 20",
        "As before, with 400 pairs of the user's own: two images in each query, two negatives in every third.",
        limit_seconds=1800,
        is_long=True,
    ),
    "kills_zips": Suite(
        "The converter killed and restarted: images in zips",
        "trials.kills --data zips --trials 20",
        "The miniature benchmark again, with the images of each subset in a zip, as MMEB-train is published.",
        limit_seconds=1800,
        is_long=True,
    ),
    "chaos": Suite(
        "Training killed and resumed",
        "trials.chaos --trials 50",
        "`make chaos`: SIGKILL at random moments, half of them during a save, once or twice per run. Bit-equal: "
        "the last checkpoint (weights, moments, schedule, random states) and the log equal those of an "
        "undisturbed run.",
        limit_seconds=3600,
        is_long=True,
    ),
    "order": Suite(
        "The global order over a million rows",
        "benchmarks.order",
        "A step's samples and their layout on all ranks, for steps of 100 epochs in random order. `first step of "
        "an epoch` differs only for orders that need a whole epoch at once; in the others every step costs the "
        "same. Indexes and peak are the growth of the process, also for the baseline.",
    ),
    "loader": Suite(
        "The loader compared with plain decoding and cropping",
        "benchmarks.loader",
        "The loader also computes the order, reads, checks, tokenizes and joins chunks; its planner is a separate "
        "process, which is included.",
        limit_seconds=1800,
    ),
    "startup": Suite(
        "Import time and time to the first step",
        "benchmarks.startup",
        "Best of the rounds. Before its first step, a run starts ranks and builds shards, model, engine and "
        "loader processes.",
    ),
    "recipes": Suite(
        "What improves scores on the miniature",
        "benchmarks.recipes",
        "Every run continues the training of the demo's trained model (after `make demo`) with the demo's recipe and "
        "one additional option: LLaVE's hardness weight; homogeneous batches of 4 units of 32 rows from one subset, "
        "which mined clusters need; mined clusters of 32 pairs as in B3, with all negatives or without likely "
        "matches; or 4 mined hard negatives per row. The demo's trained model is also the teacher that mines. "
        "Precision@1 is the mean over the miniature's 18 datasets. A difference below two standard deviations is not "
        "significant.",
        limit_seconds=6 * 3600,
        is_long=True,
    ),
    "demo_seeds": Suite(
        "The demo over several seeds",
        "benchmarks.demo_seeds",
        "After `make demo`. Each family's miniature is trained by the demo's recipe, in one process, with different "
        "seeds of the order. Precision@1 is the mean over the miniature's 18 datasets.",
        limit_seconds=6 * 3600,
        is_long=True,
    ),
    "gpu": Suite(
        "Full-size Phi-3.5-V on one GPU",
        "benchmarks.gpu",
        "Random weights, 4 crops, MMEB's mix of lengths, one rank, ZeRO-2. MFU counts the model's own FLOPs of "
        "one forward and backward pass over the items: no recomputation, no padding, no second product with the "
        "frozen weights, which DoRA with dropout needs; `on what runs` counts all of these. The plan's memory is "
        "in brackets. `benchmarks/gpu_first.sh` runs everything in 8 minutes; `--tiny` runs the same code on a "
        "CPU.",
        limit_seconds=3600,
        needs_gpu=True,
    ),
}
