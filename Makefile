.DEFAULT_GOAL := help
.PHONY: help setup up test chaos mutants lint

UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.tools/bin/uv)
PYTHON := .venv/bin/python

help:  ## explain the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install everything into .venv (and uv into .tools where it is missing)
	@test -x "$(UV)" || python3 -m pip install --quiet --target .tools --require-hashes -r .ci/uv.txt
	@"$(UV)" sync --frozen --quiet

up: setup  ## run the product on this machine; ARGS="--port 8099 --data-dir var --seed 5"
	@exec $(PYTHON) manage.py up $(ARGS)

test: setup  ## run the whole suite; DB=postgres on PostgreSQL; ARGS="-k races -x" for pytest
	@exec $(PYTHON) $(if $(filter postgres,$(DB)),-m tests.postgres $(PYTHON)) -m pytest -n 2 --dist loadfile $(ARGS)

chaos: setup  ## break everything under load and check that nothing is lost; N=2000 FAULTS=200 SEED=1 DB=postgres
	@exec $(PYTHON) $(if $(filter postgres,$(DB)),-m tests.postgres $(PYTHON)) -m tests.chaos \
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
