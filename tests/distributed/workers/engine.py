"""One rank that builds several engines one after the other, because starting ranks costs more.

Of each run it leaves a checkpoint after two steps and what the live weights encode; of the reference model, what
DeepSpeed's bf16 engine makes of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.rig import golden
from trials.rig.engines import constant
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.checkpoints.writer import Checkpoints, RunRecord
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.engine import build_engine
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunArguments, parse_arguments
from vlm2vec.training.watch.skipped_steps import SkippedSteps

TEXTS = ["a three to the left of a seven", "Represent the given image.", "nine", "coffee"]
LIVE = "live.pt"


def train_and_save(arguments: RunArguments) -> None:
    """Changes the model through its engine; writes the checkpoint and the live embeddings to the run's folder."""
    folder = Path(arguments.training.output_dir)
    settings = arguments.resolve(dist.get_world_size(), read_engine_file(Path(arguments.training.deepspeed)))
    encoder = build_encoder(settings.encoder)
    engine = build_engine(encoder, settings.engine, constant)
    inputs = encoder.processor.process_item("step in some direction", [], None).input_ids[None]
    for _ in range(2):
        vectors = engine(input_ids=inputs, attention_mask=torch.ones_like(inputs), dummy_image=True)
        engine.backward(vectors[:, :7].sum())
        engine.step()
    Checkpoints(
        folder,
        lambda path: encoder.save_configuration(path, with_base=True),
        lambda step: RunRecord(
            step, dist.get_world_size(), engine.zero_optimization_stage(), arguments.as_dict(), {}, {}
        ),
        exclude_frozen=arguments.model.lora,
    ).save(engine, 2)
    live = encoder.encode(texts=TEXTS)  # on all ranks: under ZeRO-3 each holds a part of every weight
    if dist.get_rank() == 0:
        torch.save(live, folder / LIVE)
    vectors = engine(input_ids=inputs, attention_mask=torch.ones_like(inputs), dummy_image=True)
    engine.backward(vectors.sum() * float("nan"))
    engine.step()
    assert SkippedSteps(engine).total == 1, "an update with a gradient that is not finite"
    assert torch.equal(encoder.encode(texts=TEXTS), live)
    engine.destroy()


def encode_reference(arguments: RunArguments) -> None:
    """Writes the reference queries' embeddings, of the bf16 engine, to the run's folder."""
    settings = arguments.resolve(dist.get_world_size(), read_engine_file(Path(arguments.training.deepspeed)))
    encoder = build_encoder(settings.encoder)
    engine = build_engine(encoder, settings.engine, constant)
    assert next(encoder.parameters()).dtype == torch.bfloat16
    case = golden.read("train/train.json")["query"]
    batch = golden.batch_of(Path(arguments.model.model_name), case["texts"], case["images"], case["num_crops"])
    with torch.no_grad():
        vectors = engine(**batch)
    if dist.get_rank() == 0:
        folder = Path(arguments.training.output_dir)
        folder.mkdir()
        torch.save(vectors.float(), folder / LIVE)
    engine.destroy()


JOBS = {"train and save": train_and_save, "encode reference": encode_reference}


def main(jobs: Path) -> None:
    """Does what a JSON file says, in its order: pairs of a name in JOBS and the flags of a run."""
    initialize_ranks(COLLECTIVE_SECONDS)
    for name, flags in json.loads(jobs.read_text()):
        print(name, *flags, flush=True)
        JOBS[name](parse_arguments(flags))
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
