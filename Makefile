# make demo   train a small adapter on recorded digits and measure it on a speaker it never heard (under 10 minutes)
# make compare   cascade, bridge, encoder-free and the text ceiling on one LLM, with a page to hear them (trains the bridge first)
# make test   the test suite            make test-slow  real weights, a browser   make check  linter and types
# make bench  speed, as tables, JSON and plots in runs/bench    make clean  removes the environment; runs/ stays
PYTHON ?= python3
# The build to install where none is there yet; any torch>=2.9 will do.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo compare test test-slow check bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/run.py $(ARGS)

compare: $(VENV)/installed
	test -f runs/demo/checkpoint/config.json || $(BIN)/aura train --recipe demo/recipe.yaml --resume
	$(BIN)/aura train --recipe demo/recipe.yaml --route bridge --run.out runs/bridge --resume
	$(BIN)/aura evaluate --routes aura=runs/demo/checkpoint bridge=runs/bridge/checkpoint cascade text --vad \
	  --manifest demo/data/held_out.jsonl --task answer --sample 200 --shots 10 --shots-from demo/data/train.jsonl \
	  --max-new-tokens 5 --out runs/compared

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
	$(BIN)/python benchmarks/ttft.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/speakers.py
	@echo "tables above; figures and plots: $$(find runs/bench -name '*.json' -o -name '*.png' | sort | tr '\n' ' ')"

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
