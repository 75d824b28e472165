# Everything a person runs. Each target sets up the shared environment first; only Python 3.11+ and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv guests demo test lint bench docs clean

help:
	@echo "make demo   launch dom0 and five guests with disks and consoles, and watch them work"
	@echo "make test   run the whole test suite"
	@echo "make lint   ruff and mypy --strict"
	@echo "make guests fetch GRUB and Linux as Debian packages into .guests, with an initramfs; needs no root"
	@echo "make bench  measure; prints ratios and writes benchmarks/out/results.json"
	@echo "make docs   regenerate the generated pages of docs/"
	@echo "make venv   only build the environment (.venv) that the others share"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "domzero needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

venv: $(STAMP)

GUESTS := .guests/.made

$(GUESTS): $(STAMP) $(wildcard guests/native/*)
	$(BIN)/python -m guests.native .guests
	@touch $@

guests: $(GUESTS)

demo: $(STAMP)
	rm -rf demo-out
	$(BIN)/domzero launch scenarios/demo.yaml --json demo-out/report.json

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) demo-out benchmarks/out
