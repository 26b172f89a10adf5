# Two commands for a newcomer: `make demo` and `make test`. Both set up everything they need in .venv and .cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check bench bench-allocation chaos setup clean

demo: $(READY)
	$(BIN)/python ops/demo/run.py

test: $(READY) check
	$(BIN)/python -m pytest --durations=10

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

bench-allocation: $(READY)
	$(BIN)/python -m tests.benchmarks.policies

chaos: $(READY)
	$(BIN)/python -m tests.chaos --faults 200 --seed 1

setup: $(READY)

$(READY): pyproject.toml ops/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "allotd needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python ops/install.py
	@touch $@

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-output bench-allocation
