PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint types-view bench-batch bench-loop bench-web

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/flywheel demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench-batch: setup
	$(BIN)/python benchmarks/batch.py

bench-loop: setup
	$(BIN)/python benchmarks/loop.py

bench-web: setup
	$(BIN)/python benchmarks/web.py

# mypy does not follow the editable install's import hook: this gives it the packages as folders.
types-view:
	@mkdir -p build/types/mlflow_flywheel
	@for room in plugin pipelines monitors; do ln -sfn $(CURDIR)/$$room build/types/mlflow_flywheel/$$room; done

lint: setup types-view
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
