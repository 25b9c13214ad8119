# The commands need only Python 3.11+ and make.
# Everything is installed into .venv; nothing outside this folder is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo stack test lowest lint types check dashboards pictures bench soak constraints clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "amorsize needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.demo: $(BIN)/python pyproject.toml
	@echo "Installing amorsize with its demo's needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet -e ".[prometheus,progress]"
	@touch $@

$(VENV)/.stack: $(VENV)/.demo
	@$(BIN)/python -m pip install --quiet --group stack
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	@echo "Installing amorsize with the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet -e . --group dev
	@$(PYTHON) -m venv --without-pip $(VENV)/otlp-receiver
	@$(BIN)/python -m pip --python $(VENV)/otlp-receiver/bin/python install --quiet --group otlp-receiver
	@touch $@ $(VENV)/.demo $(VENV)/.stack

$(VENV)/.lowest: $(BIN)/python pyproject.toml tests/lowest.py
	@echo "Installing amorsize with the lowest versions of its extras into $(VENV)/lowest ..."
	@$(BIN)/python tests/lowest.py > $(VENV)/lowest.txt
	@$(PYTHON) -m venv $(VENV)/lowest
	@$(BIN)/python -m pip --python $(VENV)/lowest/bin/python install --quiet -e ".[all]" --group tests \
	  --constraint $(VENV)/lowest.txt
	@touch $@

demo: $(VENV)/.demo  ## Run the main job on real input, in about 30 seconds
	@$(BIN)/amorsize demo

stack: $(VENV)/.stack  ## The demo with Prometheus, alerts and a Pushgateway, without Docker
	@$(BIN)/python -m stack

test: $(VENV)/.dev  ## Run the tests
	@$(BIN)/python -m pytest

lowest: $(VENV)/.lowest  ## The exporters' tests, with the lowest versions that the extras allow
	@$(VENV)/lowest/bin/python -m pytest -n 4 tests/exporters tests/engines tests/faults/test_dask.py

lint: $(VENV)/.dev  ## Lint and check the format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check the types
	@$(BIN)/mypy

check: lint types test  ## Lint, types and tests: what CI runs

dashboards: $(VENV)/.dev  ## Regenerate dashboards/ from the metric table
	@$(BIN)/python -m dashboards.generator

pictures: $(VENV)/.dev  ## Redraw docs/images/ from a real run (needs prometheus)
	@$(BIN)/python -m dashboards.generator.pictures

bench: $(VENV)/.dev  ## Measure, side by side with peers
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.choice
	@$(BIN)/python -m benchmarks.choice.sweep --rounds 1
	@$(BIN)/python -m benchmarks.choice.misleading
	@$(BIN)/python -m benchmarks.memory

soak: $(VENV)/.dev  ## Five minutes of random faults against random work
	@$(BIN)/python -m benchmarks.soak

constraints: $(BIN)/python  ## Pin what the image installs to the newest versions
	@$(PYTHON) -m venv --clear $(VENV)/image
	@$(BIN)/python -m pip --python $(VENV)/image/bin/python install --quiet ".[all]"
	@{ head -1 stack/constraints.txt; $(BIN)/python -m pip --python $(VENV)/image/bin/python freeze --exclude amorsize; } \
	  > $(VENV)/constraints.txt && mv $(VENV)/constraints.txt stack/constraints.txt

clean:  ## Remove the files of the other commands
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
