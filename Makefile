# The commands of development. A fresh clone needs only Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := src tests bench studies examples tools
# The package index of torch's CPU builds, which pytorch.org shows; pip's own choice includes CUDA (README, "Install").
TORCH_INDEX ?=
# Without an NVIDIA driver, the version of torch that was tested; with one, the installed torch or pip's default.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo -c constraints/cpu.txt)
SAY_INSTALLING = @echo 'Installing into $(VENV): some minutes without output (README, "Install").'

.PHONY: demo test test-slow test-vllm check format docs site clean
demo: $(VENV)/.core
	$(BIN)/fastmem demo
	@printf '\nTo type fastmem without a path, activate the environment first:\n\nsource $(VENV)/bin/activate\n'

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: $(VENV)/.slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "slow or not slow"

# VLLM_ENV: an environment with vLLM, see docs/guides/adapters.md.
test-vllm: $(VENV)/.test
	VLLM_ENV=$(VLLM_ENV) $(BIN)/python -m bench.vllm

check: $(VENV)/.dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_docs.py
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

format: $(VENV)/.dev
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs: $(VENV)/.test
	$(BIN)/python -m tools.command_reference docs/reference/cli.md

site: $(VENV)/.site
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(SAY_INSTALLING)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --index-url $(TORCH_INDEX) $(CONSTRAINTS) torch)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints/cpu.txt
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints/cpu.txt
	$(SAY_INSTALLING)
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[test]"
	touch $@ $(VENV)/.core

$(VENV)/.slow: $(VENV)/.test
	$(SAY_INSTALLING)
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[test,notebook]"
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(SAY_INSTALLING)
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[dev]"
	touch $@

$(VENV)/.site: $(VENV)/bin/python pyproject.toml
	$(SAY_INSTALLING)
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[site]"
	touch $@
