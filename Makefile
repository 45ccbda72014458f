.DEFAULT_GOAL := help
.PHONY: help setup up test test-all chaos mutants lint

UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.tools/bin/uv)
PYTHON := .venv/bin/python
ON_POSTGRES = $(if $(filter postgres,$(DB)),-m tests.postgres $(PYTHON))

# Many tests wait for Temporal, so three processes use two cores fully. A file's tests share servers.
PYTEST := -m pytest -n 3 --dist loadfile
# These tests start a browser or processes of the product, or carry orders through races and restarts.
# `make test` runs them only if ARGS names tests, and generates a tenth of the examples; `make
# test-all` and a plain `pytest` run everything. Each entry is the beginning of the names of tests.
SLOW := tests/browser tests/chaos tests/faults tests/live tests/orders/test_saga_ \
  tests/worker/test_runworker.py
# These tests give the same answers on any DATABASE_URL, so `make test-all` runs them once.
ANY_DATABASE := tests/chaos tests/live tests/local tests/mutants tests/temporal tests/worker \
  tests/test_documents.py tests/outbox/test_simulation.py::test_no_schedule_loses_or_falsifies_a_message

help:  ## explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install everything into .venv (and uv into .tools where it is missing)
	@test -x "$(UV)" || python3 -m pip install --quiet --target .tools --require-hashes -r .ci/uv.txt
	@"$(UV)" sync --frozen --quiet

up: setup  ## run the product on this machine; ARGS="--port 8099 --data-dir var --seed 5"
	@exec $(PYTHON) manage.py up $(ARGS)

test: setup  ## what to run between commits; DB=postgres on PostgreSQL; ARGS="-k races -x" for pytest
	@exec $(PYTHON) $(ON_POSTGRES) $(PYTEST) --hypothesis-profile=brief \
	  $(if $(findstring tests/,$(ARGS)),,$(addprefix --deselect=,$(SLOW))) $(ARGS)

test-all: setup  ## every test, on SQLite and then on PostgreSQL; ARGS for pytest
	@$(PYTHON) $(PYTEST) $(ARGS)
	@exec $(PYTHON) -m tests.postgres $(PYTHON) $(PYTEST) $(addprefix --deselect=,$(ANY_DATABASE)) $(ARGS)

chaos: setup  ## break everything under load, check that nothing is lost; N=2000 FAULTS=200 SEED=1 DB=postgres
	@exec $(PYTHON) $(ON_POSTGRES) -m tests.chaos \
	  $(if $(N),--expenses $(N)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(OUTAGE),--outage $(OUTAGE)) $(if $(FROZEN),--frozen) $(ARGS)

mutants: setup  ## plant one-line defects in a copy of the code: does the suite catch each?; ARGS="payment"
	@exec $(PYTHON) -m tests.mutants $(ARGS)

lint: setup  ## format check, lint, types, import contracts, missing migrations
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy .
	.venv/bin/lint-imports
	DJANGO_SETTINGS_MODULE=tests.settings $(PYTHON) manage.py makemigrations --check --dry-run
