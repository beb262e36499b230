# make demo | test | lint: each installs what it needs into .venv first, once.
# make gpu: measures the GPU here with the torch, triton and einops of $(PYTHON); installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint gpu clean

# torch first and by itself: a machine that has a build of it at hand keeps that one.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off -c constraints.txt torch
	$(BIN)/pip install --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m train.demo

# A process for each core, up to four, with a thread each; the tests of a file stay together.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

gpu:
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf $(VENV) out
