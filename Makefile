# `make demo` and `make test` do all their set-up; they need Python >= 3.11 and make, nothing else.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON ?=
TESTS ?=
EXAMPLES ?= 2000
SEED ?= 0
MODELS ?=
REPEATS ?= 15
THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz lint check format bench peers growth conformance clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv and install MorphIR into it

demo: $(STAMP) ## grow a small VGG-19 on digits and export it to runs/demo
	OMP_NUM_THREADS=1 $(BIN)/morphir grow --model vgg19 --width 8 --data digits --preset demo --out runs/demo --force

test: $(STAMP) ## run the tests (TESTS=path picks some)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup $(TESTS)

fuzz: $(STAMP) ## check many random networks (EXAMPLES=2000 SEED=0)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m random_networks --examples $(EXAMPLES) --seed $(SEED)

lint: $(STAMP) ## format check, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test ## everything that must pass before a commit

format: $(STAMP) ## format, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## time learning against training (MODELS= REPEATS= THREADS= narrow it; runs/speed/)
	$(BIN)/python benchmarks/speed.py $(if $(MODELS),--models $(MODELS)) --repeats $(REPEATS) --threads $(THREADS)

peers: $(STAMP) ## time gromo and torch-pruning, which it installs, against MorphIR (MODELS= REPEATS= THREADS=)
	$(BIN)/python benchmarks/peers.py $(if $(MODELS),--models $(MODELS)) --repeats $(REPEATS) --threads $(THREADS)

growth: $(STAMP) ## grow on Fashion-MNIST against uniform networks (hours; continues where it was stopped)
	$(BIN)/python benchmarks/fashion_mnist.py

conformance: $(STAMP) ## check every torchvision classifier (hours; continues where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/conformance.py

clean: ## remove .venv, caches and build output (runs/ stays)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One pip call for torch and torchvision, so that pip picks a pair that fits.
$(STAMP): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  set -e; \
	  found=; \
	  for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14 python); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    found=$$python; break; \
	  done; \
	  [ -n "$$found" ] || { \
	    echo "MorphIR needs Python 3.11 or newer with its venv module; tried: $(or $(PYTHON),python3, python3.11 to python3.14, python)." >&2; \
	    echo "hint: install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	  }; \
	  echo "creating $(VENV) with $$("$$found" --version)"; \
	  rm -rf $(VENV); \
	  "$$found" -m venv $(VENV); \
	}
	$(PIP) install torch torchvision
	$(PIP) install -e '.[dev]'
	@touch $@
