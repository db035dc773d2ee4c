# Each target sets up what it needs: `make demo` or `make test` may be the first command ever run here.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
CHECK_STAMP := .venv/.check-complete
# Nothing is left outside of the project's folder, and so no cache. Errors are printed; what pip says
# of a machine's own settings is not. Python compiles what is imported, and not all that is installed.
PIP_OPTIONS := -qq --disable-pip-version-check --no-cache-dir
LOCKED := --no-deps --require-hashes --requirement
# Bytecode is kept in .venv, even where a machine has Python write none next to its sources: each process
# would compile Prefect again, and takes half as long when it does not.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/bytecode
PIP := $(BIN)/python -m pip $(PIP_OPTIONS)

# Make the environment $(1) from the lock file $(2). Every hash is checked, and nothing is resolved.
# uv takes a tenth of pip's time. It knows none of pip's settings but the index that it is given here:
# pip does what uv cannot.
define environment
@$(PYTHON) -m venv --clear $(1)
@$(1)/bin/python -m pip $(PIP_OPTIONS) install --no-compile --target $(1)/.uv $(LOCKED) .ci/uv.lock 2>/dev/null || true
@index="$${PIP_INDEX_URL:-$$($(1)/bin/python -m pip config get global.index-url 2>/dev/null)}"; \
  UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}" $(1)/.uv/bin/uv pip install \
    --quiet --no-cache --python $(1)/bin/python $(LOCKED) $(2) 2>/dev/null \
  || $(1)/bin/python -m pip $(PIP_OPTIONS) install --no-compile $(LOCKED) $(2)
@rm -rf $(1)/.uv
@$(1)/bin/python -m pip $(PIP_OPTIONS) install --no-deps --no-build-isolation --editable .
endef

.PHONY: setup test test-quick test-slow check docs demo up up-test oldest e2e contract pictures chaos chaos-replicas chaos-schedulers bench lock clean

setup: $(STAMP)
	@:

# The stamp is written last: an interrupted set-up is done again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ladon-storage needs Python 3.11 or later; say which one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (once, less than a minute)"
	$(call environment,.venv,requirements.lock)
	@touch $@

$(CHECK_STAMP): $(STAMP) .ci/check.lock
	@$(PIP) install $(LOCKED) .ci/check.lock
	@touch $@

# One more than processors: a test that waits for a server leaves its processor to another.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

# While you write: no flows and no commands, and nothing of Delta tables, of DuckDB, of servers of
# databases, or of many processes.
test-quick: $(STAMP)
	@$(BIN)/python -m pytest -n auto -m "not slow" \
	  --ignore tests/flows --ignore tests/cli --ignore tests/testing \
	  -k "not (postgres or mariadb or duckdb or delta or process or killed or benchmark or packaging \
	  or public_names or known_faults or hostile or schedule or durability or retention)"

# Kills processes, loses Prefect under runs, replays whole recordings, and takes the rest of each family of cases.
test-slow: $(STAMP)
	@$(BIN)/python -m pytest -n auto --dist loadgroup -m slow

check: $(CHECK_STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m tests.deploy.schemas

# Writes what is generated: parts of docs/reference, and the JSON schema of ladon.toml.
docs: $(STAMP)
	@$(BIN)/python -m ladon_storage.project.schema
	@$(BIN)/python -m tests.project.reference

demo: $(STAMP)
	@$(BIN)/python -m demo

# Everything on this machine, until Ctrl-C: make up PREFECT_PORT=4300 STORAGE_PORT=8090
up: $(STAMP)
	@exec $(BIN)/ladon-storage up --table prefect.yaml --folder .local \
	  $(if $(PREFECT_PORT),--prefect-port $(PREFECT_PORT)) \
	  $(if $(STORAGE_PORT),--storage-port $(STORAGE_PORT))

# Starts and ends it, and runs what is scheduled: minutes, and so apart from the other tests.
up-test: $(STAMP)
	@$(BIN)/python -m pytest tests/up -n 2 --dist loadfile

# The flows with the oldest Prefect that is allowed, and on Dask and Ray, in an environment of its own;
# `make test` has the newest.
# The recorder of task runs in that Prefect locks its own SQLite for a minute at times (seen in one of 311
# tests): what failed is asked once more, by itself.
OLDEST := .venv-oldest/bin/python -m pytest tests/flows -n 2 --dist loadgroup
oldest:
	$(call environment,.venv-oldest,tests/flows/oldest.lock)
	@$(OLDEST) || $(OLDEST) --last-failed --last-failed-no-failures none

# Starts collections in Prefect's UI, as a person does. The browser is the machine's: make e2e CHROMIUM=/usr/bin/chromium
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
e2e: $(STAMP)
	@test -x "$(CHROMIUM)" || { \
	  echo "make e2e needs a browser: install Chromium (apt-get install chromium), or say where it is: make e2e CHROMIUM=..." >&2; exit 1; }
	@$(PIP) install $(LOCKED) tests/e2e/requirements.lock
	@CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/e2e

# Asks the service all that its description allows, and what it forbids, for about a minute. The tool has
# an environment of its own: as a plugin of pytest it would take part in every test.
CONTRACT_SECONDS ?= 25
contract: $(STAMP)
	@$(PYTHON) -m venv --clear .venv-contract
	@.venv-contract/bin/python -m pip $(PIP_OPTIONS) install --no-compile $(LOCKED) tests/contract/requirements.lock
	@SCHEMATHESIS="$(CURDIR)/.venv-contract/bin/st" CONTRACT_SECONDS=$(CONTRACT_SECONDS) SEED=$(SEED) \
	  $(BIN)/python -m pytest tests/contract

# Shows the present pages in the documents, and the dashboard: that takes Prometheus and its Pushgateway.
pictures: e2e
	@cp $(foreach page,form-v1 form-v2 run-v2 artifact-v2 failed-v2 overview-v1,.e2e/screenshots/$(page).png) docs/images/
	@$(BIN)/python -m tests.project.dashboard_picture

# Kills collections and services for as long as you like: make chaos SECONDS=600 SEED=7, or KILLS=1000.
SEED ?= 1
SECONDS ?= 60
chaos: $(STAMP)
	@$(BIN)/python -m chaos --seed $(SEED) $(if $(KILLS),--kills $(KILLS),--seconds $(SECONDS))

# The same with replicas of the service over one PostgreSQL, behind nginx, one of them killed every five
# seconds besides: make chaos-replicas SECONDS=600
REPLICAS ?= 3
chaos-replicas: $(STAMP)
	@PATH="$$PATH:/usr/sbin" command -v nginx > /dev/null || { \
	  echo "make chaos-replicas needs nginx: install it (apt-get install nginx-light)" >&2; exit 1; }
	@$(BIN)/python -m chaos --replicas $(REPLICAS) --seed $(SEED) --seconds $(SECONDS)

# Two schedulers with `when_busy = "skip"`, killed with their runs: make chaos-schedulers SECONDS=600
chaos-schedulers: $(STAMP)
	@$(BIN)/python -m chaos.schedulers --seed $(SEED) --seconds $(SECONDS)

# The peers that figures are taken beside are no part of the project, and are installed only here;
# Airbyte's CDK in an environment of its own. Figures and chart of benchmarks/README.md are written again.
# Some scripts alone: make bench SCRIPTS="feed growth"
bench: $(STAMP)
	@$(PIP) install $(LOCKED) benchmarks/requirements.lock
	@test -x .venv-airbyte/bin/python || $(PYTHON) -m venv .venv-airbyte
	@.venv-airbyte/bin/python -m pip $(PIP_OPTIONS) install --no-compile $(LOCKED) benchmarks/airbyte.lock
	@$(BIN)/python -m benchmarks $(SCRIPTS)
	@$(BIN)/python -m benchmarks.page

# For maintainers: resolve again. Needs uv; no registry's host is written. What a target adds has the versions of requirements.lock.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
ADDED := $(COMPILE) --constraints requirements.lock
lock:
	$(COMPILE) --upgrade pyproject.toml --all-extras --group test --output-file requirements.lock
	$(ADDED) --group check --output-file .ci/check.lock
	$(ADDED) --group install --output-file .ci/uv.lock
	$(ADDED) pyproject.toml deploy/image.in --extra postgresql --extra delta --extra redis --output-file deploy/image.lock
	$(ADDED) deploy/build.in --output-file deploy/build.lock
	$(ADDED) benchmarks/requirements.in --output-file benchmarks/requirements.lock
	$(COMPILE) --upgrade benchmarks/airbyte.in --output-file benchmarks/airbyte.lock
	$(ADDED) tests/e2e/requirements.in --output-file tests/e2e/requirements.lock
	$(ADDED) tests/contract/requirements.in --output-file tests/contract/requirements.lock
	$(COMPILE) --upgrade pyproject.toml tests/flows/oldest.in --all-extras --group test --output-file tests/flows/oldest.lock

clean:
	rm -rf .venv .venv-oldest .venv-contract .venv-airbyte benchmarks/.results .demo .local .e2e .chaos build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
