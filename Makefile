# `make` lists the targets. A fresh machine needs only Python 3.11 or newer and make: every target sets up .venv itself.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench soak

BIN := .venv/bin

# Real volumes and the generator of broken inputs, where this checkout has them beside it.
ifndef SSCL_DATA
ifneq ($(wildcard ../shared/data),)
export SSCL_DATA := $(abspath ../shared/data)
endif
endif
ifndef SSCL_BAD_INPUTS
ifneq ($(wildcard ../shared/bad_inputs/make_bad_inputs.py),)
export SSCL_BAD_INPUTS := $(abspath ../shared/bad_inputs/make_bad_inputs.py)
endif
endif

help:
	@echo "make setup     create .venv with the pinned versions: 2 minutes, downloads 0.4 GB (several where torch brings CUDA)"
	@echo "make demo      the whole path on virtual patients: train, predict, evaluate, report; about 5 minutes on 2 cores"
	@echo "make test      the tests, without the slow ones: under 3 minutes on 2 cores"
	@echo "make test-all  all tests: under 12 minutes on 2 cores"
	@echo "make check     ruff, mypy and the import contracts: under 1 minute"
	@echo "make soak      the tests with random inputs, all of them (make test takes a few hundred): 15 minutes on 2 cores"
	@echo "make bench     every speed claim, measured again on this machine"
	@echo "The first of them sets up .venv. PYTHON=/path/to/python3 chooses the Python that it is made with."

setup: .venv/.ready

.venv/.ready: pyproject.toml requirements/constraints.txt
	@echo "setup: installing the pinned versions into .venv (2 minutes, downloads 0.4 GB, several where torch brings CUDA)"
	@test -x $(BIN)/python || $(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[dev]"
	@touch $@

# The first Python that is new enough, or only PYTHON where it is given. A name that is there may still not run (version managers), so each one is tried.
.PHONY: venv
venv:
	@for python in $(or $(PYTHON),python3 python python3.11 python3.12 python3.13 python3.14); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "setup: $$("$$python" --version) ($$(command -v "$$python"))"; \
	    "$$python" -m venv .venv && exit 0; \
	    echo "setup: $$python cannot create .venv (Debian and Ubuntu: install the package python3-venv)." >&2; rm -rf .venv; exit 1; \
	  fi; \
	done; \
	echo "setup: no Python 3.11 or newer found ($(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1 || true))." >&2; \
	echo "setup: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1

demo: .venv/.ready
	@echo "demo: trains and compares on virtual patients; about 5 minutes on 2 cores"
	$(BIN)/sscl demo

# One thread per test process: two processes already fill two cores, and results do not depend on the thread count.
test: .venv/.ready
	@echo "test: everything but the slow tests; under 3 minutes on 2 cores"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/.ready
	@echo "test-all: every test; under 12 minutes on 2 cores"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: .venv/.ready
	@echo "check: ruff, mypy, import contracts; under 1 minute"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: .venv/.ready
	@echo "soak: 10,000 random pairs of masks, 5,000 against MedPy, 1,000 tables of scores, 50 killed trainings, 10 minutes of damaged files, ..."
	SSCL_SOAK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m soak -rP --show-capture=stdout

bench: .venv/.ready
	@echo "bench: speed, as ratios within one run each"
	@set -e; for script in benchmarks/bench_*.py; do \
	  test -e "$$script" || { echo "bench: no benchmark yet"; break; }; \
	  echo "== $$script"; $(BIN)/python "$$script"; \
	done
