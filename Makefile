# make demo   train a small adapter on recorded digits and measure it on a speaker it never heard (under 10 minutes)
# make test   the test suite            make check  linter and types            make bench  benchmarks
PYTHON ?= python3
# The build to install where none is there yet; any torch>=2.9 will do.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-full test test-slow check bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/run.py $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -q

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/train_throughput.py

clean:
	rm -rf $(VENV) runs
