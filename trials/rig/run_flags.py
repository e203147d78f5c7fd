"""The flags that every run of the training program needs."""

from __future__ import annotations

from pathlib import Path

from trials.rig.launcher import REPOSITORY


def run_flags(model: Path, shards: Path | str, output: Path, engine: str, *others: str) -> list[str]:
    """A command line for `vlm2vec.train`, without the program's name.

    Args:
        model: Folder of the model to train.
        shards: Folder of the data; any word for a program that reads none.
        output: Folder that the run writes to.
        engine: Name of a file in `ds_configs/` without its suffix, such as "zero2".
        others: All other flags; if a flag is repeated, the last one counts.
    """
    return [
        *("--model_name", str(model), "--dataset_name", str(shards), "--output_dir", str(output)),
        *("--deepspeed", str(REPOSITORY / "ds_configs" / f"{engine}.json"), *others),
    ]
