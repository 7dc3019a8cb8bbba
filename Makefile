# Every target sets up what it needs in .venv, from nothing but make and Python 3.11 or newer.

SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One rule at a time: two pips in one .venv step on each other. The tests themselves run in parallel.
.NOTPARALLEL:

# Where bytecode is not kept (many container images say so), each of the nodes that tests start compiles everything.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
# More than the two cores this is made for: much of the tests is waiting.
JOBS ?= 3
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-slow test-all check format bench-transfer bench-overhead bench-ledger bench-golem clean

help:
	@echo 'make demo      a local network, a node and a real task on it'
	@echo 'make test      the default tests'
	@echo 'make test-slow  only the slow tests'
	@echo 'make test-all  these and the slow ones'
	@echo 'make check     format, lint, types, the tables and the files made from them'
	@echo 'make format    put the code into its format'
	@echo 'make bench-transfer  inputs and artifacts beside curl; BENCH="--mib 4096" for another size'
	@echo 'make bench-overhead  what a node costs a task, beside a bare client; BENCH="--tasks 4000" for more of them'
	@echo "make bench-ledger  the ledger's commits beside SQLite's bare ones"
	@echo 'make bench-golem  a Golem runtime beside a bare asyncio script; BENCH="--mib 1000" for more output'
	@echo 'make setup     only make .venv (the others do so when needed)'
	@echo 'make clean     take away .venv and all that was built'

setup: $(VENV)/ready

demo: $(VENV)/examples
	@$(BIN)/python examples/pointcloud/demo.py

test: $(VENV)/ready
	$(PYTEST)

test-slow: $(VENV)/ready
	$(PYTEST) -m slow

test-all: $(VENV)/ready
	$(PYTEST) -m 'slow or not slow'

check: $(VENV)/ready
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	bin/posemesh-node diagram --check
	$(BIN)/python tools/contract.py --check

format: $(VENV)/ready
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

bench-transfer: $(VENV)/base
	@$(BIN)/python benchmarks/transfer.py $(BENCH)

bench-overhead: $(VENV)/base
	@$(BIN)/python benchmarks/overhead.py $(BENCH)

bench-ledger: $(VENV)/base
	@$(BIN)/python benchmarks/ledger.py $(BENCH)

bench-golem: $(VENV)/base
	@$(BIN)/python benchmarks/golem.py $(BENCH)

clean:
	rm -rf $(VENV) build dist lib/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# The first interpreter that is new enough and can make environments (Debian ships python3 without ensurepip).
$(BIN)/python:
	@for python in $${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV); exit 0; \
	  fi; \
	done; \
	echo 'posemesh needs Python 3.11 or newer with its venv module, and found none: install it' \
	  '(Debian, Ubuntu: apt install python3-venv), or name one: make PYTHON=/path/to/python3.11' >&2; exit 1

# The stamps say which wishes of setup.cfg are installed.
$(VENV)/base: setup.cfg pyproject.toml | $(BIN)/python
	@echo 'installing posemesh into $(VENV)'
	@$(PIP) --editable .
	@touch $@

$(VENV)/ready: $(VENV)/base
	@echo 'installing the tools for tests and checks into $(VENV)'
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/examples: $(VENV)/base
	@echo 'installing what the examples need into $(VENV)'
	@$(PIP) --editable '.[examples]'
	@touch $@
