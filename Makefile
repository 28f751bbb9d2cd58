# `make compare` and `make test` are all a fresh machine with python3 and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread each: tests run in two processes.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: compare experiments check bench gallery test lint format clean

compare: $(VENV)/.lab
	$(BIN)/normalform compare $(ARGS)

experiments: $(VENV)/.lab
	$(BIN)/normalform compare --experiment all $(ARGS)

check: $(VENV)/.lab
	$(BIN)/normalform check $(ARGS)

bench: $(VENV)/.lab
	$(BIN)/normalform bench $(ARGS)

gallery: $(VENV)/.lab
	$(BIN)/normalform explain --all $(ARGS)

test: $(VENV)/.dev
	$(TEST) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/.lab: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab]'
	touch $@

$(VENV)/.dev: $(VENV)/.lab
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,dev]'
	touch $@
