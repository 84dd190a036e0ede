# `make demo` and `make test` do everything on a fresh machine; `make setup` makes .venv alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test real lint clean

help:
	@echo "make demo    a model learns to add from nothing, in about a minute on two cores"
	@echo "make test    all tests, in a few minutes"
	@echo "make real    fetches a real chat model (180 MB) and fine-tunes it, in about three minutes"
	@echo "make setup   .venv with chuk in it; demo and test do this first when it is needed"
	@echo "make lint    style and types"
	@echo "make clean   remove .venv and what demo made"

setup: .venv/ready

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chuk needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing chuk and its libraries into .venv: about 650 MB, a minute or two."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@echo "Installed. For the command alone: source $(BIN)/activate"

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

real: setup
	$(BIN)/python tests/real/prepare.py
	$(BIN)/python -m pytest -m real tests/real

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build dist *.egg-info
