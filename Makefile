# make demo | test | check | lint | docs | dist: each installs what it needs into .venv first, once.
# make gpu: measures the GPU here with the torch and triton of $(PYTHON); installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check laws lint docs dist gpu clean

# Not to bytecode: Python does that with what it imports, pip with all that there is.
PIP := $(BIN)/pip install --progress-bar off --no-compile -c constraints.txt

# torch first and by itself: a machine that has a build of it at hand keeps that one.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m train.demo

# The tests of a file stay together; how many processes, and which files come first: tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(PYTEST)

# For whoever is at work: lint, types and the library's laws, side by side. `make test` has the rest:
# what takes a compiler or Triton's interpreter, other processes, pages.
check: $(VENV)/installed
	$(MAKE) -j 2 lint laws

SLOW := tests/test_selfcheck.py tests/test_coarse_stage.py tests/test_ulysses.py \
	tests/test_readme.py tests/test_guide.py tests/test_%_page.py

laws: $(VENV)/installed
	$(PYTEST) -k "not compile and not triton" $(filter-out $(SLOW), $(wildcard tests/test_*.py))

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site, into out/site; a link, an anchor or a name that is not there fails.
docs: $(VENV)/with_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/with_docs: $(VENV)/installed
	$(PIP) -e '.[docs]'
	touch $@

# Wheel and sdist, into out/dist, each tried in an environment of torch and triton alone.
dist: $(VENV)/installed
	$(BIN)/python .ci/dist.py

gpu:
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf $(VENV) out
