# Each target sets up what it needs: `make demo` or `make test` may be the first command ever run here.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
# Nothing is left outside of the project's folder, and so no cache.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-cache-dir

.PHONY: setup test test-quick test-slow check demo up up-test next e2e pictures chaos bench lock clean

setup: $(STAMP)

# pip checks every hash, and resolves nothing: older ones take a version that the lock does not name
# for what is asked for with an extra. The stamp is written last: an interrupted set-up is done again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ladon-storage needs Python 3.11 or later; say which one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (once, about a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --no-deps --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

test: $(STAMP)
	@$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow"

# While you write: no flows, and nothing of Delta tables, of servers of databases, or of many processes.
test-quick: $(STAMP)
	@$(BIN)/python -m pytest -n auto -m "not slow" --ignore tests/flows --ignore tests/up \
	  -k "not (postgres or mariadb or delta or process or benchmark or packaging or scenario or hostile)"

# Kills processes, loses Prefect under runs, and replays whole recordings.
test-slow: $(STAMP)
	@$(BIN)/python -m pytest -n auto --dist loadgroup -m slow

check: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

demo: $(STAMP)
	@$(BIN)/python -m demo

# Everything on this machine, until Ctrl-C: make up PREFECT_PORT=4300 STORAGE_PORT=8090
up: $(STAMP)
	@exec $(BIN)/python -m demo.up $(if $(PREFECT_PORT),--prefect-port $(PREFECT_PORT)) \
	  $(if $(STORAGE_PORT),--storage-port $(STORAGE_PORT))

# Starts and ends it, and runs what is scheduled: minutes, and so apart from the other tests.
up-test: $(STAMP)
	@$(BIN)/python -m pytest tests/up -n 2 --dist loadfile

# The flows with the Prefect that comes next, and on Dask and Ray, in an environment of its own.
NEXT := .venv-next/bin/python
PIP_NEXT := $(NEXT) -m pip --quiet --disable-pip-version-check --no-cache-dir
next:
	@$(PYTHON) -m venv --clear .venv-next
	@$(PIP_NEXT) install --no-deps --require-hashes --requirement tests/flows/next.lock
	@$(PIP_NEXT) install --no-deps --no-build-isolation --editable .
	@$(NEXT) -m pytest tests/flows -n 2 --dist loadgroup

# Starts collections in Prefect's UI, as a person does. The browser is the machine's: make e2e CHROMIUM=/usr/bin/chromium
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
e2e: $(STAMP)
	@test -x "$(CHROMIUM)" || { \
	  echo "make e2e needs a browser: install Chromium (apt-get install chromium), or say where it is: make e2e CHROMIUM=..." >&2; exit 1; }
	@$(PIP) install --no-deps --require-hashes --requirement tests/e2e/requirements.lock
	@CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/e2e

# Shows the present pages in the documents.
pictures: e2e
	@cp $(foreach page,form run artifact failed,.e2e/screenshots/$(page).png) docs/images/

# Kills collections and services for as long as it is told to: make chaos SECONDS=600 SEED=7, or KILLS=1000.
SEED ?= 1
SECONDS ?= 60
chaos: $(STAMP)
	@$(BIN)/python -m chaos --seed $(SEED) $(if $(KILLS),--kills $(KILLS),--seconds $(SECONDS))

# The peers that figures are taken beside are no part of the project, and are installed only here.
bench: $(STAMP)
	@$(PIP) install --no-deps --require-hashes --requirement benchmarks/requirements.lock
	@$(BIN)/python -m benchmarks

# For maintainers: resolve anew. Needs uv; no registry's host is written.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header pyproject.toml --all-extras --group dev --output-file requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header benchmarks/requirements.in --constraints requirements.lock \
	  --output-file benchmarks/requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header tests/e2e/requirements.in --constraints requirements.lock \
	  --output-file tests/e2e/requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header pyproject.toml tests/flows/next.in --all-extras --group dev \
	  --output-file tests/flows/next.lock

clean:
	rm -rf .venv .venv-next .demo .local .e2e .chaos build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
