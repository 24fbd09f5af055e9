# `make demo` and `make test` set everything up by themselves, in .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread for each test process: gloo worlds are forked, and results do not depend on the number of cores.
TEST_ENV := OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_DATA_DISABLE_PROGRESS_BARS=1 RAY_AIR_NEW_OUTPUT=0

.PHONY: demo test check fast slow bench faults setup clean

demo: $(READY)
	$(BIN)/raytrain demo --overwrite

# The tests with Ray mostly wait for its processes, so the others run beside them, with lower priority.
test: check
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target fast slow

setup: $(READY)

# torch first: anything else that needs it would choose another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

fast: $(READY)
	$(TEST_ENV) nice -n 5 $(BIN)/python -m pytest -m "not ray and not slow"

slow: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -m "ray or slow"

# Every claim, the short way; `python benchmarks/<claim>.py` measures it in full.
bench: $(READY)
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file --short; done

# Hundreds of injected faults; none may go unnoticed.
faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py

clean:
	rm -rf $(VENV) build *.egg-info
