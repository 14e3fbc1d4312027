# One word per task. `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# pip finds cmake and ninja of the environment, and two jobs keep a small machine responsive.
export PATH := $(abspath $(BIN)):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP    := $(BIN)/python -m pip
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help env build demo test lint format typecheck bench clean

help:  ## list the tasks
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

env: $(VENV)/.env-stamp  ## make .venv with the pinned dependencies
build: $(VENV)/.build-stamp  ## compile the native code and install parasample, editable

$(VENV)/.env-stamp: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -q -r requirements-dev.txt
	@touch $@

$(VENV)/.build-stamp: $(VENV)/.env-stamp $(NATIVE)
	$(PIP) install --no-compile -q --no-build-isolation --no-deps -e .
	@touch $@

demo: build  ## sample something in parallel and show it beside the sequential result
	$(BIN)/parasample demo

test: lint typecheck  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: env  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: build  ## mypy over parasample with kernels in its installed place
	@rm -rf build/typecheck && mkdir -p build/typecheck/parasample
	@for entry in parasample/*; do ln -s ../../../$$entry build/typecheck/parasample/; done
	@ln -s ../../../kernels build/typecheck/parasample/kernels
	cd build/typecheck && mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p parasample

bench: build  ## time the kernels against eager torch, torch.compile and the published chain
	$(BIN)/parasample bench kernels

clean:  ## remove what the build made; keeps .venv
	rm -rf build dist *.egg-info kernels/_native .pytest_cache .mypy_cache .ruff_cache $(VENV)/.build-stamp
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
