"""The wheel contains every module and data file, and its programs run without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.rig.golden import PHI3V
from vlm2vec.installed.commands import COMMANDS

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("vlm2vec", "data_prep", "eval")
SETTINGS_FILES = {"launch/recipes": "vlm2vec/installed/recipes", "ds_configs": "vlm2vec/installed/ds_configs"}
SECONDS = 280

# Runs every program's --help by its module and by its console script, plans a recipe by its name, then encodes. One
# process, as importing torch and transformers takes seconds.
PROGRAMS = """
    import contextlib, io, json, runpy, sys
    from pathlib import Path

    prefix, model, image, *programs = sys.argv[1:]

    def end(run, *words):
        sys.argv = list(words)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                run()
            code = "no exit"
        except SystemExit as end:
            code = end.code or 0
        except Exception as error:
            code = repr(error)
        return code, output.getvalue()

    ends = {}
    for program in programs:
        code, output = end(lambda: runpy.run_module(program, run_name="__main__"), program, "--help")
        ends[program] = [code, "usage:" in output]
    script_ends = {}
    for script in sorted(Path(prefix, "bin").glob("vlm2vec-*")):
        run = lambda: runpy.run_path(str(script), run_name="__main__")
        code, output = end(run, str(script), "--help")
        script_ends[script.name] = [code, " ".join(output.split()[:2])]
    train = str(Path(prefix, "bin", "vlm2vec-train"))
    run = lambda: runpy.run_path(train, run_name="__main__")
    paths = ["--model_name", model, "--dataset_name", "-", "--output_dir", "-"]
    recipe = end(run, train, "--print_config", "--config", "mini", "--deepspeed", "zero2", *paths)

    from vlm2vec import VLM2Vec

    vectors = VLM2Vec.from_pretrained(model).encode(texts=["a cat", "<|image_1|> What is it"], images=[None, image])
    files = [module.__file__ for name, module in sys.modules.items()
             if name.split(".")[0] in ("vlm2vec", "data_prep", "eval") and getattr(module, "__file__", None)]
    strangers = [file for file in files if not Path(file).is_relative_to(prefix)]
    norms = [float(vector @ vector) for vector in vectors]
    print(json.dumps({"ends": ends, "scripts": script_ends, "recipe": recipe, "norms": norms, "modules": len(files),
                      "strangers": strangers}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built offline from a copy of the sources, so that the repository gets no build/ folder."""
    sources, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    for name in (*PACKAGES, *SETTINGS_FILES):
        shutil.copytree(REPOSITORY / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip("wheel", str(sources), "--no-deps", "--no-build-isolation", "--wheel-dir", str(output))
    (built,) = output.glob("*.whl")
    return built


def pip(*words: str) -> None:
    """Runs pip without a network."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", words[0], "--quiet", "--no-index", *words[1:]],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def programs() -> list[str]:
    """Modules that `python -m` runs."""
    found = []
    for name in PACKAGES:
        for path in sorted((REPOSITORY / name).rglob("*.py")):
            if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
                module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
                found.append(module.removesuffix(".__main__"))
    return found


def test_every_module_and_data_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES}
    sources = {
        path.relative_to(REPOSITORY).as_posix()
        for name in PACKAGES
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"vlm2vec/training/__init__.py", "vlm2vec/py.typed", "eval/templates/report.html.j2"} <= sources
    assert "vlm2vec/backbones/phi3_v/published/Phi-3.5-vision-instruct/config.json" in sources
    copies = {
        f"{inside_package}/{path.name}"
        for folder, inside_package in SETTINGS_FILES.items()
        for path in (REPOSITORY / folder).iterdir()
    }
    assert {"vlm2vec/installed/recipes/lora_1024.yaml", "vlm2vec/installed/ds_configs/zero2.json"} <= copies
    assert inside == sources | copies


def test_the_wheel_has_a_script_for_every_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        lines = archive.read(name).decode().split("\n")
    scripts = {line.split(" = ")[0] for line in lines if " = " in line}
    assert scripts == set(COMMANDS)
    assert set(COMMANDS.values()) <= set(programs())
    not_for_users = {"vlm2vec.doctor.hostfile", "vlm2vec.training.checkpoints.universal"}
    demo = {"data_prep.mini_mmeb", "data_prep.mini_model"}
    assert set(programs()) - set(COMMANDS.values()) == not_for_users | demo


@pytest.mark.timeout(3 * SECONDS)
def test_programs_run_and_encode_outside_of_the_repository(wheel: Path, golden_model_dir: Path, tmp_path: Path) -> None:
    prefix, elsewhere = tmp_path / "prefix", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--target", str(prefix), str(wheel))
    names = programs()
    assert {"vlm2vec.train", "vlm2vec.plan", "vlm2vec.export", "vlm2vec.doctor"} <= set(names)
    assert {"data_prep.convert", "eval.mmeb", "eval.report"} <= set(names)
    script = elsewhere / "run_programs.py"
    script.write_text(textwrap.dedent(PROGRAMS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(prefix), str(golden_model_dir), str(PHI3V / "images/square.png"), *names],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(prefix), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ends"] == {name: [0, True] for name in names}
    assert result["scripts"] == {script: [0, f"usage: {script}"] for script in COMMANDS}
    code, config = result["recipe"]
    assert code == 0
    assert "global_batch_size: 128  # recipe" in config
    assert result["norms"] == pytest.approx([1, 1], rel=1e-5)
    assert result["modules"] > 50
    assert result["strangers"] == []
