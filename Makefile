# Everything below works from a fresh clone: the first target that needs Python makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test portable portable-fast exactness chaos bench docs check format clean

install: $(STAMP)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 14) else "Python 3.10 to 3.13 is needed; choose one with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch first: it decides between its CPU and GPU builds, the rest takes what is there.
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt torch
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[demo,dev,docs,mine,mteb,remote,report,sentence-transformers,wandb]'
	# trackio refuses the Pillow that the expected pixels in tests come from, and works with it.
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --no-deps trackio
	touch $@

# FAMILY=NAME: with a miniature of another model family, in demo-NAME.
demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" FAMILY="$(FAMILY)" launch/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest

# The tests that compare numbers, with the kernels of processors without AVX, with AVX2, and of this one.
portable: $(STAMP)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -m numeric
	ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -m numeric
	env -u ATEN_CPU_CAPABILITY $(BIN)/python -m pytest -m numeric

# The part of it that takes less than a minute.
portable-fast: $(STAMP)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -m numeric tests/contrastive tests/evaluation \
	  tests/backbones/phi3_v/test_image_processor.py

exactness: $(STAMP)
	$(BIN)/python -m trials.exactness_report

chaos: $(STAMP)
	$(BIN)/python -m trials.chaos --trials 50

# The ranks and the programs that benchmarks start use one thread each, or they would wait for one another's.
bench: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m benchmarks $(SUITES)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint launch/Dockerfile
	$(BIN)/codespell
	$(MAKE) docs

# The documentation as a site in site/; a warning is an error. The variable silences an advertisement of the theme's.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo demo-* site .pytest_cache .mypy_cache .ruff_cache
