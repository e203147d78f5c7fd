from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trials.rig.damage import OPERATORS
from trials.rig.forgery import forge_json
from vlm2vec.errors import InputError
from vlm2vec.training.checkpoints.record import RunRecord

TRIALS = 400
BAD = {"subset": "A", "position": 3, "reason": "damaged"}
RECORD = RunRecord(
    7, 2, 1, {"lora": False}, {"torch": "2"}, {"shards": "0"}, {"log_temperature": -3.9}, [BAD], 2, {"engine/x": 5}
)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values.update(step=-1), "run.json: step is -1"),
        (lambda values: values.update(step=10**30), "run.json: step is 1000000"),
        (lambda values: values.update(step=True), "step is true"),
        (lambda values: values.update(num_ranks=0), "num_ranks is 0"),
        (lambda values: values.update(zero_stage=4), "zero_stage is 4"),
        (lambda values: values.update(temperature={"log_temperature": "cold"}), "temperature.log_temperature is"),
        (lambda values: values.update(bad_samples=[{"subset": "A"}]), "fields subset, position and reason"),
        (lambda values: values.update(bad_samples=[{**BAD, "position": -3}]), "fields subset, position and reason"),
        (lambda values: values.update(files={"../x": 1}), "'../x' is not one of the checkpoint's"),
        (lambda values: values.update(files={"x": None}), "files.x is null"),
        (lambda values: values.update(surprise=1), "surprise is not a setting that this version knows"),
        (lambda values: values.pop("arguments"), "arguments is missing"),
        (lambda values: values.pop("schema_version"), "no schema_version"),
        (lambda values: values.update(schema_version=9), "written in format 9"),
    ],
)
def test_a_field_that_cannot_be_is_named(edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    RECORD.write(path)
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError) as caught:
        RunRecord.read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def outcome(path: Path) -> tuple[RunRecord | None, str]:
    """What is read, or the error's message."""
    try:
        return RunRecord.read(path), ""
    except InputError as error:
        return None, str(error)


def test_a_damaged_record_is_refused_or_is_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    RECORD.write(path)
    assert RunRecord.read(path) == RECORD
    content, refused = path.read_text(), 0
    for trial in range(TRIALS):
        generator = random.Random(trial)
        if trial % 4:
            path.write_text(json.dumps(forge_json(json.loads(content), generator)))
        else:
            operator = generator.choice(list(OPERATORS))
            path.write_bytes(OPERATORS[operator](bytearray(content.encode()), generator, b"[]"))
        record, message = outcome(path)
        if record is None:
            refused += 1
            assert str(tmp_path) in message
            assert "\n" not in message
            continue
        stated = json.loads(path.read_text())
        record.write(path)
        written = json.loads(path.read_text())
        assert {name: written[name] for name in stated} == stated
    assert refused > TRIALS // 2
