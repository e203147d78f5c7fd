from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval import report
from eval.cells import ScoreTable, not_told_apart
from eval.comparison import Comparison
from eval.csv_file import to_csv
from eval.report import name_runs, to_markdown, to_terminal
from eval.results import read_scores
from eval.retrieval_table import RetrievalRun
from eval.table import Run, paper_table, score_table
from vlm2vec.errors import EXIT_BAD_INPUT, InputError, run_program
from vlm2vec.evaluation.aggregation import summarise
from vlm2vec.evaluation.metrics import DatasetScore
from vlm2vec.mmeb import MINI_MMEB, MMEB, PUBLISHED_SCORES, Benchmark
from vlm2vec.mmeb_v2 import VISDOC_METRIC

MODEL = {"model_name": "models/x", "checkpoint_path": None, "num_crops": 4, "fingerprint": "0123456789abcdef"}


def scores_of(accs: dict[str, float], benchmark: Benchmark | None = MMEB, num_tied: int = 0) -> dict[str, Any]:
    scores = {
        name: DatasetScore(acc, round(acc * 1000), 1000, 0.001, num_tied, 0, acc, acc, acc, acc)
        for name, acc in accs.items()
    }
    return {"model": MODEL, "dataset_split": "test", "num_items": 5000, "warnings": [], **summarise(scores, benchmark)}


def papers_table(runs: list[Run]) -> ScoreTable:
    """`paper_table` where there is one."""
    table = paper_table(runs)
    assert table is not None
    return table


def lines_of(table: ScoreTable) -> dict[str, tuple[float | None, ...]]:
    """Figures by the line's first cell."""
    rows = [row for section in table.sections for row in section]
    return {str(row.cells[0]): tuple(cell for cell in row.cells[1:] if not isinstance(cell, str)) for row in rows}


def test_runs_stand_side_by_side_in_the_benchmarks_order() -> None:
    mini = ["MosaicGround", "Digits-10", "Photos", "Digits-Tilted"]
    before = Run("untrained", scores_of(dict.fromkeys(mini, 0.1), MINI_MMEB))
    after = Run("trained", scores_of(dict(zip(mini, (0.5, 0.6, 0.7, 0.8), strict=True)), MINI_MMEB))
    table = score_table([before, after])
    assert table.headings == ("dataset", "", "chance", "untrained", "trained")
    assert list(lines_of(table)) == [
        *("Digits-10", "Photos", "Digits-Tilted", "classification (mean of 3 of 5)"),
        *("MosaicGround", "grounding (mean of 1 of 2)"),
        *("IND (mean of 3 of 10)", "OOD (mean of 1 of 8)", "overall (mean of 4 of 18)"),
    ]
    assert [len(section) for section in table.sections] == [4, 2, 3]
    assert lines_of(table)["Photos"] == pytest.approx((0.1, 10, 70))
    assert lines_of(table)["classification (mean of 3 of 5)"] == pytest.approx((0.1, 10, 70))
    assert lines_of(table)["overall (mean of 4 of 18)"] == pytest.approx((0.1, 10, 65))
    assert [row.cells[1] for row in table.sections[0]] == ["IND", "IND", "OOD", ""]
    assert paper_table([before, after]) is None


def test_the_papers_models_stand_below_the_whole_benchmark() -> None:
    table = papers_table([Run("mine", scores_of({dataset.name: 0.5 for dataset in MMEB.eval_datasets}))])
    assert table.headings == ("model", "Cls", "VQA", "Ret", "VG", "IND", "OOD", "all")
    lines = lines_of(table)
    assert lines["mine"] == pytest.approx((50,) * 7)
    assert lines["VLM2Vec full fine-tuning"] == (52.8, 50.3, 57.8, 72.3, 62.8, 47.4, 55.9)
    assert len(lines) == 1 + len(PUBLISHED_SCORES)


def test_only_complete_groups_are_compared_with_the_paper() -> None:
    vqa = [dataset.name for dataset in MMEB.eval_datasets if dataset.meta_task == "vqa"]
    table = papers_table([Run("mine", scores_of(dict.fromkeys([*vqa, "CIRR"], 0.5)))])
    assert list(lines_of(table)["mine"]) == [None, pytest.approx(50), None, None, None, None, None]
    assert paper_table([Run("mine", scores_of({"CIRR": 0.5}))]) is None


def test_datasets_of_ones_own_beside_the_benchmark_withhold_the_overall_comparison() -> None:
    accs = {dataset.name: 0.5 for dataset in MMEB.eval_datasets}
    table = papers_table([Run("mine", scores_of({**accs, "own": 1.0}))])
    assert lines_of(table)["mine"] == (*[pytest.approx(50)] * 6, None)


def test_runs_over_different_datasets_or_rows_are_noted() -> None:
    first = scores_of({"GQA": 0.5, "CIRR": 0.5})
    second = scores_of({"GQA": 0.6})
    second["datasets"]["GQA"]["num_pred"] = 999
    runs = [Run("a", first), Run("b", second)]
    assert lines_of(score_table(runs))["CIRR"] == pytest.approx((0.1, 50.0, None))
    lines = "\n".join(Comparison(runs).notes())
    assert "cover different datasets" in lines
    assert "different rows of GQA" in lines


def test_ties_are_noted() -> None:
    run = Run("mine", scores_of({"own": 0.5}, None, num_tied=3))
    assert "mine: 3 rows lost by a tie with the truth." in Comparison([run]).notes()


def test_terminal_and_file_show_the_same_tables() -> None:
    vqa = {dataset.name: 0.512 for dataset in MMEB.eval_datasets if dataset.meta_task == "vqa"}
    runs = [Run("a|b [c]", scores_of({**vqa, "own": 0.25}))]
    tables = [score_table(runs), papers_table(runs)]
    markdown = to_markdown(tables, Comparison(runs).notes())
    assert "| GQA | OOD | 0.1 | 51.2 |" in markdown
    assert "| **vqa (mean of 10)** |  | **0.1** | **51.2** |" in markdown
    assert "| **a\\|b [c]** | **-** | **51.2** | **-** |" in markdown
    assert "fingerprint 0123456789abcdef, 4 crops" in markdown
    for table in tables:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(to_terminal(table))
        shown = console.export_text()
        assert "a|b [c]" in shown
        for each in (each for section in table.sections for each in section):
            line = next(line for line in shown.splitlines() if f" {each.cells[0]} " in line)
            assert all(f" {cell:.1f} " in line for cell in each.cells if isinstance(cell, float))


def test_numbers_that_chance_may_explain_are_marked() -> None:
    runs = [Run(name, scores_of({"GQA": acc, "VizWiz": 0.5})) for name, acc in (("a", 0.5), ("b", 0.53), ("c", 0.6))]
    table = score_table(runs)
    assert [row.texts()[3:] for row in table.sections[0][:2]] == [
        ["50.0", "50.0 ~", "50.0 ~"],  # VizWiz
        ["50.0", "53.0 ~", "60.0"],
    ]
    assert lines_of(table)["GQA"] == pytest.approx((0.1, 50, 53, 60))
    assert any("A number with ~ differs from that of a by less" in line for line in Comparison(runs).notes())
    assert not any("A number with ~" in line for line in Comparison([runs[0], runs[2]][:1]).notes())


@pytest.mark.parametrize(
    ("other", "told_apart"),
    [((0.6, [0.5, 0.7]), True), ((0.45, [0.35, 0.55]), False), ((0.2, [0.1, 0.3]), True), (None, True)],
)
def test_a_difference_is_told_by_the_intervals_of_both(
    other: tuple[float, list[float]] | None, told_apart: bool
) -> None:
    assert not_told_apart([(0.4, [0.3, 0.5]), other]) == ([] if told_apart else [1])
    assert not_told_apart([other, (0.4, [0.3, 0.5])]) == ([] if told_apart else [1])


def compare(*runs: dict[str, float], baseline: str = "") -> ScoreTable:
    """Runs a, b, ... side by side."""
    named = [Run(name, scores_of(accs)) for name, accs in zip("abc", runs, strict=False)]
    return Comparison(named, baseline=baseline).scores()


def test_runs_are_compared_with_the_baseline() -> None:
    table = compare({"GQA": 0.5, "CIRR": 0.2}, {"GQA": 0.75, "CIRR": 0.1}, {"GQA": 0.51, "CIRR": 0.2})
    assert table.headings[3:] == ("a", "b", "c", "\u0394 b", "\u0394 c")
    rows = {str(row.cells[0]): row for section in table.sections for row in section}
    assert rows["GQA"].texts()[3:] == ["50.0", "75.0", "51.0 ~", "+25.0", "+1.0 ~"]
    assert rows["GQA"].kinds()[3:] == ["", "best", "", "up", ""]
    assert rows["CIRR"].texts()[3:] == ["20.0", "10.0", "20.0 ~", "-10.0", "0.0 ~"]
    assert rows["CIRR"].kinds()[3:] == ["best", "", "best", "down", ""]
    assert rows["overall (mean of 2 of 36)"].texts()[6:] == ["+7.5", "+0.5 ~"]
    other = compare({"GQA": 0.5}, {"GQA": 0.75}, baseline="b")
    assert other.headings[3:] == ("a", "b", "difference")
    assert other.sections[0][0].texts()[3:] == ["50.0", "75.0", "-25.0"]
    assert compare({"GQA": 0.5}).headings[3:] == ("a",)
    same = compare({"GQA": 0.5}, {"GQA": 0.5})
    assert "best" not in same.sections[0][0].kinds()


def test_only_the_same_rows_are_compared() -> None:
    runs = [Run(name, scores_of({"GQA": acc, "CIRR": 0.5})) for name, acc in (("a", 0.5), ("b", 0.6), ("c", 0.7))]
    runs[1].summary["datasets"]["GQA"]["num_pred"] = 999
    comparison = Comparison(runs)
    rows = {str(row.cells[0]): row for section in comparison.scores().sections for row in section}
    for name in ("GQA", "vqa (mean of 1 of 10)", "overall (mean of 2 of 36)"):
        assert rows[name].texts()[6] == "-"
        assert rows[name].texts()[7] != "-"
        assert "best" not in rows[name].kinds()
    assert rows["CIRR"].texts()[6:] == ["0.0 ~", "0.0 ~"]
    assert any(line.startswith("A difference is - where") for line in comparison.remarks())
    fewer = Comparison([runs[0], Run("d", scores_of({"CIRR": 0.75}))])
    rows = {str(row.cells[0]): row for section in fewer.scores().sections for row in section}
    assert rows["CIRR"].texts()[5:] == ["+25.0"]
    assert rows["overall (mean of 2 of 36)"].texts()[3:] == ["50.0", "75.0", "-"]


def test_collections_are_compared_too() -> None:
    def run(name: str, mean: float, documents: int = 9) -> RetrievalRun:
        metrics = {VISDOC_METRIC: {"mean": mean, "interval": [mean - 0.05, mean + 0.05]}}
        score = {"group": None, "num_queries": 5, "num_documents": documents, "metrics": metrics}
        model = {"model_name": "x", "fingerprint": "0"}
        return RetrievalRun(name, {"model": model, "collections": {"A": score}, "groups": {}, "warnings": []})

    comparison = Comparison((), [run("a", 0.5), run("b", 0.625), run("c", 0.25, 8)], baseline="b")
    (row,) = comparison.tables()[0].sections[0]
    assert row.texts()[3:] == ["50.0", "62.5", "25.0", "-12.5", "-"]
    assert "against b" in " ".join(comparison.remarks())


def test_markdown_and_terminal_show_differences_and_the_best() -> None:
    table = compare({"GQA": 0.5, "CIRR": 0.2}, {"GQA": 0.75, "CIRR": 0.1})
    markdown = to_markdown([table], [])
    assert "| GQA | OOD | 0.1 | 50.0 | **75.0** | +25.0 |" in markdown
    assert "| CIRR | IND | 0.1 | **20.0** | 10.0 | -10.0 |" in markdown
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(to_terminal(table))
    assert "\x1b[1;32m75.0" in console.export_text(styles=True)


def test_a_baseline_without_effect_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for runs, message in ((["a", "b"], "none of the runs (a, b)"), (["a"], "no effect on a single run")):
        assert run_program(lambda: report.main([*runs, "--baseline", "c"])) == EXIT_BAD_INPUT  # noqa: B023
        assert message in capfd.readouterr().err


def test_every_number_is_in_the_csv_file() -> None:
    run = Run("mine", scores_of({"GQA": 0.5, "own": 0.25}))
    lines = list(csv.DictReader(io.StringIO(to_csv([run], []))))
    found = {(line["name"], line["metric"]): line for line in lines}
    assert float(found["GQA", "precision@1"]["value"]) == 0.5
    assert float(found["GQA", "precision@1"]["low"]) < 0.5 < float(found["GQA", "precision@1"]["high"])
    assert found["GQA", "mrr"]["queries"] == "1000"
    assert float(found["overall", "precision@1"]["value"]) == 0.375
    assert {line["run"] for line in lines} == {"mine"}


def test_names_default_to_folders_and_to_paths_where_these_are_equal() -> None:
    runs = [Path("a/scores"), Path("b/scores")]
    assert name_runs([Path("x/one"), Path("x/two")], None) == ["one", "two"]
    assert name_runs(runs, None) == ["a/scores", "b/scores"]
    assert name_runs(runs, ["before", "after"]) == ["before", "after"]
    with pytest.raises(InputError, match="1 names for 2 runs"):
        name_runs(runs, ["before"])
    with pytest.raises(InputError, match="the same name"):
        name_runs(runs, ["x", "x"])


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model": {}, "datasets": {"A": {"acc": 1}}}'])
def test_a_folder_that_is_no_run_ends_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    assert run_program(lambda: report.main([str(tmp_path)])) == EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(tmp_path) in lines[0]


def test_damaged_values_end_in_one_line(tmp_path: Path) -> None:
    scores = scores_of({"GQA": 0.5})
    for key in ("model", "datasets", "meta_tasks"):
        (tmp_path / "scores.json").write_text(json.dumps({**scores, key: 3}))
        with pytest.raises(InputError, match="not as python"):
            read_scores(tmp_path)


def test_a_run_that_does_not_exist_and_a_bad_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: report.main([str(tmp_path / "none")])) == EXIT_BAD_INPUT
    assert run_program(lambda: report.main([])) == EXIT_BAD_INPUT
    assert run_program(lambda: report.main([str(tmp_path), "--nonsense"])) == EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
