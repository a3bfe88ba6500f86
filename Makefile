PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test screenshots pulsar test-pulsar lint types-view bench-adjust bench-backtest bench-batch bench-loop bench-web bench-stream drill-stream bench-estimation bench-monitor

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/flywheel demo

# Two test processes with a pool of threads each would mostly wait for each other.
test: setup
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The pictures of the docs, as the page's tests see it in a real browser.
screenshots: setup
	OMP_NUM_THREADS=1 FLYWHEEL_SCREENSHOTS=$(CURDIR)/docs/images $(BIN)/python -m pytest -q \
		tests/integration/test_pages.py -k "not status_says"

# The Apache Pulsar broker (Java 17 and Maven are needed), into a cache outside of this repository.
pulsar: setup
	$(BIN)/python -m mlflow_flywheel.pipelines.stream.apache_files

test-pulsar: pulsar
	CI=true $(BIN)/python -m pytest -m apache -n 2 --dist loadfile

# What live adjustments gain and cost, on streams with and without drift: no time is measured.
bench-adjust: setup
	PYTHONPATH=tests $(BIN)/python benchmarks/adjust.py

bench-backtest: setup
	$(BIN)/python benchmarks/backtest.py

bench-batch: setup
	$(BIN)/python benchmarks/batch.py

bench-estimation: setup
	$(BIN)/python benchmarks/estimation.py

# With ARGS=--simulations or ARGS=--flights one part alone.
bench-loop: setup
	$(BIN)/python benchmarks/loop.py $(ARGS)

# With ARGS=--quick in a minute.
bench-monitor: setup
	$(BIN)/python benchmarks/monitor.py $(ARGS)

bench-web: setup
	$(BIN)/python benchmarks/web.py

# With ARGS=--apache on Apache Pulsar too, which `make pulsar` fetches.
bench-stream: setup
	PYTHONPATH=tests $(BIN)/python benchmarks/stream.py $(ARGS)

# With ARGS="--rounds N --seed N" as many rounds as wanted, or the same again.
drill-stream: setup
	PYTHONPATH=tests $(BIN)/python benchmarks/stream_drill.py $(ARGS)

# mypy does not follow the editable install's import hook: this gives it the packages as folders.
types-view:
	@mkdir -p build/types/mlflow_flywheel
	@for room in plugin pipelines monitors; do ln -sfn $(CURDIR)/$$room build/types/mlflow_flywheel/$$room; done

lint: setup types-view
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
