# Two commands for a newcomer: `make demo` and `make test`. Both set up everything they need in .venv and .cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# These need no more than their own process, so two of them run at once.
ALONE := tests/unit tests/migration
export HF_HUB_OFFLINE ?= 1
# Without bytecode every process of ours compiles what it imports, vLLM half a minute long, each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-services test-llm check bench bench-allocation chaos fuzz setup clean

demo: $(READY)
	$(BIN)/python ops/demo/run.py

test: $(READY) check
	$(BIN)/python -m pytest $(ALONE) --numprocesses 2 --durations=10
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-services test-llm

# Beside each other: both mostly wait, for processes that start and for a model that writes.
test-services: $(READY)
	$(BIN)/python -m pytest $(ALONE:%=--ignore=%) -m "not vllm" --durations=10

test-llm: $(READY)
	$(BIN)/python -m pytest $(ALONE:%=--ignore=%) -m vllm --durations=10

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

fuzz: $(READY)
	FUZZ_EXAMPLES=100 FUZZ_FILES=10000 $(BIN)/python -m pytest --timeout 3600 tests/integration/test_openapi_document.py \
		tests/unit/test_intake_fuzz.py tests/integration/test_intake_fuzz_on_postgres.py

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
