# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer: they make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check lint types layers lowest format clean

demo: $(VENV)/.installed
	$(BIN)/afina demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: lint types layers test

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

layers: $(VENV)/.installed
	$(BIN)/lint-imports

# What depends on the versions of other packages, with the lowest that `pyproject.toml` allows.
lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct \
		--editable ".[openvino,dev]"
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -W ignore -n auto --dist worksteal $(addprefix tests/test_, \
		capture.py network.py saved_files.py runtimes.py quantized_files.py prune.py models.py cli.py)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist runs .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[openvino,dev]"
	touch $@
