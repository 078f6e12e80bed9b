# Everything a person types here. A fresh clone needs nothing but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without an NVIDIA driver, the CPU build of torch; with one, whatever torch pip finds or is already there.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo -c constraints/cpu.txt)

.PHONY: demo test test-slow check format docs clean
demo: $(VENV)/.core
	$(BIN)/fastmem demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "slow or not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_docs.py
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

format: $(VENV)/.dev
	$(BIN)/ruff format src tests bench examples
	$(BIN)/ruff check --fix src tests bench examples

docs: $(VENV)/.test
	$(BIN)/python -m fastmem.cli --write-docs docs/cli.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints/cpu.txt
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints/cpu.txt
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[test]"
	touch $@ $(VENV)/.core

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[dev]"
	touch $@
