"""The GPU benchmarks with tiny models, and their output on a machine without a GPU."""

from __future__ import annotations

import gc
import json
import subprocess
import weakref
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import bench, exactness, families, training
from benchmarks.gpu.items import RandomItems
from benchmarks.gpu.model import PHI3_V, Model, make_batch
from benchmarks.gpu.rows import NOT_MEASURED, NOT_RUN, Figures, LeftOutError, Recorder, Section
from benchmarks.suites import SUITES
from tests.rig import made_up_family
from trials.exactness_grid import BF16_TOLERANCE, TOLERANCE, Cell
from trials.rig.forked import run_ranks
from trials.rig.launcher import REPOSITORY, environment
from trials.rig.patience import HANG_SECONDS
from vlm2vec.batches import ChunkSizes
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import TokenBudget

CPU = torch.device("cpu")
TINY = Model(PHI3_V, tiny=True)
VARIANTS = {name: variant for _, variants in training.SECTIONS.values() for name, variant in variants.items()}
SECTION = Section("Table", ("value", "more"), lambda figures: [str(figures["value"]), "more"])


def printed_rows(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith(("| run |", "| --- |"))]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_is_a_run_that_the_training_program_takes(name: str) -> None:
    variant = VARIANTS[name]
    settings, tiny = (
        bench.settings_of(variant, bench.Setting(CPU, Model(PHI3_V, is_tiny), 24, 1, None)) for is_tiny in (False, True)
    )
    assert settings.chunking.packing == TokenBudget(variant.chunk_tokens)
    assert settings.cluster.global_batch_size == 24
    assert tiny.chunking.packing == TokenBudget(variant.chunk_tokens // 32)


def test_the_script_runs_every_table_on_a_cpu(forked_python: Path, tmp_path: Path) -> None:
    """All of `gpu_first.sh --tiny`: what a GPU will run, with a tiny model."""
    done = subprocess.run(
        ["benchmarks/gpu_first.sh", "--tiny"],
        cwd=REPOSITORY,
        env={**environment(), "OUT": str(tmp_path), "PYTHON": str(forked_python), "LIMIT": str(HANG_SECONDS)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, log[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows if row["status"] != "ok"] == []
    tables = (tmp_path / "tables.md").read_text()
    assert all(f"| {row['run']} | " in tables for row in rows)
    steps = [row for row in rows if "pass_1" in row]
    assert [row["run"] for row in steps] == [variant.what for variant in VARIANTS.values()]
    assert all(row["pairs_per_second"] > 0 and 0.5 < row["pass_1"] + row["pass_2"] <= 1 for row in steps)
    only_encoded = [row["run"] for row in steps if row["pass_2"] == 0]
    assert only_encoded == [variant.what for variant in VARIANTS.values() if variant.work is bench.Work.ENCODE]
    exact = [row for row in rows if "bound" in row]
    assert len(exact) == len(exactness.TINY_ROWS) + 1
    assert all(row["within"] and row["replayed"] is not False for row in exact)
    # PEFT's layers and this code's take the same step; what is not the model's own work counts only as what runs.
    by_name = dict(zip(VARIANTS, steps, strict=True))
    assert by_name["peft"]["loss"] == pytest.approx(by_name["dora"]["loss"], rel=0.02)
    assert by_name["dora"]["run_tflops"] * by_name["dora"]["seconds"] > 1.5 * (
        by_name["adapter"]["run_tflops"] * by_name["adapter"]["seconds"]
    )


def test_the_script_takes_parts_and_shows_why_one_failed(forked_python: Path, tmp_path: Path) -> None:
    def ran(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["benchmarks/gpu_first.sh", "--tiny", *words],
            cwd=REPOSITORY,
            env={**environment(), "OUT": str(tmp_path), "PYTHON": str(forked_python), **more},
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    refused = ran("ceilings")
    assert (refused.returncode, refused.stderr) == (
        2,
        "gpu_first.sh: ceilings: expected TABLE[.ROW,...][+TABLE...]:SECONDS\n",
    )
    parts = ("nonsense:300", f"ceilings+exactness.adapter:{HANG_SECONDS}")
    done = ran(*parts, LIMIT=str(HANG_SECONDS), FAMILY="qwen3_vl")
    assert done.returncode == 1
    tables = (tmp_path / "tables.md").read_text()
    assert "nonsense: exit code 2; the end of what it said:" in tables
    assert "invalid choice: 'nonsense'" in tables
    assert "\nqwen3_vl, CPU, torch " in tables
    assert "| copy on the device | " in tables
    assert "| ZeRO-2, dora adapter dropout, dropout 0.1 | " in tables
    assert "| ZeRO-2, full, dropout 0.0 | " not in tables
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log.txt", "machine.txt", "rows.jsonl", "tables.md"]


def test_a_row_that_its_table_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"invalid choice: 'none' \(lora has dora, "):
        program.main(["--sections", "lora.plain,none"])


def test_another_familys_tables_run_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    words = ["--tiny", "--family", "qwen3_vl", "--sections", "family", "tower", "lora.dora", "encode.encode"]
    run_ranks(1, ["-m", "benchmarks.gpu", *words, "--output", str(file)], tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    exact, (waits, tower, kernel, lora, encode) = rows[: len(families.SETTINGS)], rows[len(families.SETTINGS) :]
    assert [row["status"] for row in (*exact, tower, lora, encode)] == ["ok"] * (len(exact) + 3)
    assert [row["status"] for row in (waits, kernel)] == ["only on a GPU", "no such kernel here"]
    assert all(row["within"] for row in exact)
    assert tower["images"] >= 1
    assert min(lora["run_tflops"], encode["items_per_second"]) > 0


def test_a_row_that_raises_loses_nothing_but_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    recorder = Recorder(file, 1000, "a device")
    recorder.begin(SECTION)

    def fails(error: Exception) -> Figures:
        raise error

    assert recorder.row("first", lambda: {"value": 1})
    assert not recorder.row("bad", lambda: fails(ValueError("a|b\nc")))
    assert not recorder.row("memory", lambda: fails(RuntimeError("CUDA out of memory. Tried to allocate")))
    assert not recorder.row("large", lambda: fails(LeftOutError("does not fit: 92 GiB planned")))
    assert recorder.row("last", lambda: {"value": 2})
    assert recorder.num_failed == 2
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "| first | 1 | more |",
        "| bad | failed: ValueError: a/b c |  |",
        "| memory | out of memory |  |",
        "| large | does not fit: 92 GiB planned |  |",
        "| last | 2 | more |",
    ]
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["run"] for row in kept] == ["first", "bad", "memory", "large", "last"]
    assert kept[-1]["value"] == 2


def test_when_the_time_is_over_rows_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path / "rows.jsonl", -1, "a device")
    recorder.begin(SECTION)
    recorder.row("late", lambda: pytest.fail("was started"))
    assert capsys.readouterr().out.splitlines()[-1] == f"| late | {NOT_RUN} |  |"


def test_a_failure_does_not_harm_the_rows_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a failure the model is built anew; no earlier one is kept alive."""
    built: list[str] = []

    class Fake:
        def __init__(self, variant: bench.Variant, setting: bench.Setting) -> None:
            self.kind = variant.kind
            built.append(variant.what)

        def measure(self, variant: bench.Variant) -> Figures:
            if "32,768" in variant.what:
                raise RuntimeError("out of memory")
            return dict.fromkeys(
                ("seconds", "pairs_per_second", "items_per_second", "tokens_per_second", "mfu", "run_tflops"), 1.0
            ) | (dict.fromkeys(("peak_gib", "plan_gib", "pass_1", "pass_2", "num_chunks"), 0.5))

        def close(self) -> None:
            built.append("closed")

    monkeypatch.setattr(training, "Bench", Fake)
    recorder = Recorder(tmp_path / "rows.jsonl", 1000, "a device")
    training.run(recorder, bench.Setting(CPU, TINY, 4, 1, None), "lora")
    assert built[:4] == [VARIANTS["dora"].what, "closed", VARIANTS["kept"].what, "closed"]
    assert built.count("closed") == len(built) / 2
    assert len(printed_rows(capsys)) == len(training.SECTIONS["lora"][1])


def test_a_closed_model_is_freed() -> None:
    made = bench.Bench(VARIANTS["compute"], bench.Setting(CPU, TINY, 4, 1, None))
    encoder = weakref.ref(made._encoder)
    made.close()
    gc.collect()
    assert encoder() is None


def test_mfu_counts_the_models_own_flops_and_the_plan_is_shown_beside_the_peak() -> None:
    setting = bench.Setting(CPU, TINY, 4, 1, 1.0)
    variant = VARIANTS["dora"]
    model = bench._meta(variant.model, setting)
    assert model.settings.lora is not None
    assert model.settings.lora.dropout == 0.1
    assert model.without_dropout().settings == bench.settings_of(VARIANTS["no_dropout"], setting).encoder
    flops = bench._useful_flops(variant.model, setting)
    batch = make_batch(TINY, 4, ChunkSizes(TokenBudget(256)), CPU)
    expected = flops.of(sum(batch.lengths), sum(length**2 for length in batch.lengths), sum(batch.vision_units))
    assert bench._utilization(variant.model, batch, 2.0, setting) == pytest.approx(expected / 2e12)
    assert bench._utilization(variant.model, batch, 2.0, bench.Setting(CPU, TINY, 4, 1, None)) is None
    planned = [bench.planned_bytes(model, bench.settings_of(variant, setting), kept) for kept in (1, 10**6)]
    assert 0 < planned[0] < planned[1]


def test_of_the_cells_the_worst_is_shown() -> None:
    cells = [Cell(2, "dora bf16", 0.0, "mixed", chunks) for chunks in ("one item", "ragged")]
    assert [cell.tolerance for cell in cells] == [TOLERANCE, BF16_TOLERANCE]
    shown = exactness.summarize(cells, [2e-4, 1e-3], CPU)
    assert (shown["error"], shown["within"], shown["replayed"]) == (2e-4, False, None)
    on_gpu = exactness.summarize(cells, [2e-4, 1e-3], torch.device("cuda"))
    assert (on_gpu["error"], on_gpu["within"]) == (1e-3, True)
    dropped = [Cell(2, "full", 0.1, "mixed", chunks) for chunks in ("one item", "ragged")]
    lost = exactness.summarize(dropped, [1e-7, float("inf")], CPU)
    assert (lost["error"], lost["within"], lost["replayed"]) == (1e-7, False, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_nothing_is_invented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert program.main(["--output", str(file)]) == 0
    measured = printed_rows(capsys)
    assert len(measured) > len(VARIANTS) + len(exactness.SETTINGS)
    assert all(set(row.removesuffix(" |").split(" | ")[1:]) == {NOT_MEASURED} for row in measured)
    assert not file.exists()
    assert SUITES["gpu"].command == "benchmarks.gpu"


def test_random_items_are_the_familys_own_with_contents_that_differ() -> None:
    processor = made_up_family.FAMILY.processor.without_tokenizer(made_up_family.made_up_model().config)
    make = RandomItems(processor, num_text_ids=30)
    text = torch.tensor([5, 31, 7])
    size = processor.largest_image_size
    plain, first, second = make(text, None), make(text, size), make(text + 1, size)
    assert plain.input_ids[-3:].tolist() == [5, 1, 7]
    assert (len(plain.input_ids), plain.vision_units) == (4, 0)
    assert len(first.input_ids) == 4 + processor.num_image_tokens(*size)
    assert first.vision_units == processor.num_vision_units(*size)
    blank = processor.blank_item(len(first.input_ids), [size])
    changed = (first.input_ids != blank.input_ids).sum()
    assert 0 < changed <= len(text)
    assert first.tensors.keys() == blank.tensors.keys()
    for name, values in first.tensors.items():
        assert (values.device, values.shape) == (CPU, blank.tensors[name].shape)
    assert any(not torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    chunk = ItemEncoderInputs(processor, None).chunk([plain, first, second])
    assert (chunk.num_items, chunk.has_image) == (3, True)


def test_an_unknown_family_leaves_its_rows_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path / "rows.jsonl", 1000, "a device")
    setting = bench.Setting(CPU, Model("no_such", tiny=True), 4, 1, None)
    training.run(recorder, setting, "full", ["compute"])
    families.run_exactness(recorder, CPU, "no_such")
    families.run_tower(recorder, setting)
    assert recorder.num_failed == 0
    rows = printed_rows(capsys)
    assert len(rows) == 1 + len(families.SETTINGS) + 2
    assert all("no model family no_such" in row for row in rows)
