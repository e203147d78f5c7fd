"""Makes docs/images/ from a demo: `python -m trials.images`. Needs chromium and a demo (`make demo`).

It shows the demo's report, its TensorBoard and the page of `data_prep.inspect`, each in headless chromium, cuts the
screenshots and reduces their colors, so that each is less than 250 kB. Nothing is written into the demo.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from eval import report
from trials.rig.launcher import REPOSITORY, free_port
from trials.rig.patience import HANG_SECONDS
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_MAX_BYTES = 250_000
# TensorBoard's page of curves, unsmoothed, with those that tell most.
_CURVES = "scalars&_smoothingWeight=0&tagFilter=loss%2F(hit%7Ctrain)%7Coptimizer%2F%5Bgl%5D%7Csimilarity%2F%7Cpairs_per"
# What TensorBoard needs to fetch and draw its curves; chromium's clock runs faster than this.
_DRAWING_MILLISECONDS = 30_000


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.images",
        description="Makes docs/images from a demo: the report, the page of data_prep.inspect, TensorBoard.",
        examples=("python -m trials.images --demo demo",),
    )
    made.add_argument("--demo", type=Path, default=Path("demo"), metavar="DIR", help="Folder that make demo wrote.")
    made.add_argument(
        "--output_dir", type=Path, metavar="DIR", help="Folder for the images. If not given: docs/images."
    )
    return made


def main() -> None:
    """Parses the command line, makes the images, prints their sizes."""
    arguments = parser().parse_args()
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise InputError(f"no browser found; install one of {', '.join(_BROWSERS)}")
    if not (arguments.demo / "scores/trained").is_dir():
        raise InputError(f"--demo {arguments.demo}: no demo there; make one with: make demo")
    demo, output = arguments.demo, arguments.output_dir or REPOSITORY / "docs/images"
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scores = [str(demo / "scores" / name) for name in ("untrained", "trained")]
        report.main([*scores, "--output_dir", str(folder)])
        take(browser, (folder / report.PAGE_FILE).as_uri(), (1200, 1090), output / "report.png")
        page = folder / "inspect.html"
        inspect = [sys.executable, "-m", "data_prep.inspect", str(demo / "shards"), "--html", str(page)]
        subprocess.run(inspect, check=True, stdout=subprocess.DEVNULL, timeout=HANG_SECONDS)
        take(browser, page.as_uri(), (1200, 1290), output / "inspect.png")
        with tensorboard(demo / "run") as address:
            take(browser, f"{address}/?darkMode=false#{_CURVES}", (1440, 960), output / "tensorboard.png")


def take(browser: str, address: str, size: tuple[int, int], path: Path) -> None:
    """Takes a screenshot of a page's upper part.

    Args:
        browser: Chromium.
        address: Of the page.
        size: Width and height in pixels.
        path: Of the image, a PNG file of at most 256 colors.
    """
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}"]
        command += [f"--virtual-time-budget={_DRAWING_MILLISECONDS}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=HANG_SECONDS)
        with Image.open(shot) as image:
            reduced = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            reduced.save(path, optimize=True)
    num_bytes = path.stat().st_size
    print(f"{path}: {num_bytes / 1000:.0f} kB")
    if num_bytes > _MAX_BYTES:
        raise RuntimeError(f"{path}: {num_bytes:,} bytes, more than {_MAX_BYTES:,}; show less of the page")


@contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """Runs TensorBoard on a run's folder, as long as the block lasts; its address.

    The page shows the folder as it is called from two levels above: "demo/run".
    """
    folder = run.resolve()
    above = folder.parents[1]
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder.relative_to(above)),
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(port), "--load_fast", "false"]
    process = subprocess.Popen(command, cwd=above, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(HANG_SECONDS):
            if process.poll() is not None:
                raise RuntimeError(f"TensorBoard ended with exit code {process.returncode}")
            if _answers(f"{address}/data/plugin/scalars/tags"):
                break
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


def _answers(address: str) -> bool:
    """Whether there is data already: the answer is an empty object until a run was read."""
    try:
        with urllib.request.urlopen(address, timeout=HANG_SECONDS) as answer:
            return len(answer.read()) > 2
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(run_program(main))
