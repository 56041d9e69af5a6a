PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
NODE_STAMP := node_modules/.complete
PEERS_STAMP := .venv-peers/.complete
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header
SCHEMA ?= docs/schema.sql

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup run test test-slow check lint lock schema psql backup restore clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(STAMP) ## Make .venv from the locked requirements
	@:

run: setup ## Start everything: PostgreSQL, migrations, a small demo, the API and the worker
	@$(BIN)/python launch.py

test: setup ## Run the tests
	@$(PYTEST) -m "not slow"

test-slow: setup $(NODE_STAMP) ## Run the tests that take longer
	@$(PYTEST) -m slow

check: setup lint test test-slow ## Run all that CI runs

lint: setup ## Check style, format and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

lock: setup ## Write requirements/*.txt anew from *.in (UPGRADE=--upgrade takes newer versions)
	@$(COMPILE) $(UPGRADE) requirements/base.in --output-file requirements/base.txt
	@$(COMPILE) $(UPGRADE) requirements/dev.in --output-file requirements/dev.txt
	@$(COMPILE) $(UPGRADE) requirements/peers.in --output-file requirements/peers.txt

# The migrations' outcome on an empty database of its own. sed drops what pg_dump draws anew each time.
schema: setup ## Write docs/schema.sql
	@instance=$$(mktemp -d) && trap 'rm -rf "$$instance"' EXIT && \
	export INSTANCE_DIR="$$instance" DATABASE_URL= && \
	$(BIN)/python -m flask --app wsgi db upgrade 2>"$$instance/log" || { cat "$$instance/log" >&2; exit 1; } && \
	$(BIN)/python embedded.py pg_dump --schema-only --no-owner --exclude-table=alembic_version >"$$instance/schema" && \
	sed -e '/^\\/d' -e '/^-- Dumped/d' "$$instance/schema" | cat -s >$(SCHEMA)

psql: setup ## Look into the database
	@$(BIN)/python embedded.py psql

backup: setup ## Write a backup of the database to FILE
	@test -n "$(FILE)" || { echo "make backup FILE=vade.dump" >&2; exit 1; }
	@$(BIN)/python embedded.py pg_dump --format=custom --no-owner --file="$(FILE)"

# One transaction: into a database that has something already, nothing is restored.
restore: setup ## Restore a backup from FILE into an empty database
	@test -n "$(FILE)" || { echo "make restore FILE=vade.dump" >&2; exit 1; }
	@$(BIN)/python embedded.py pg_restore --no-owner --single-transaction "$(FILE)"

clean: ## Remove .venv and what tools left; the data in instance/ stays
	@rm -rf .venv .venv-peers node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a set-up that was interrupted is begun anew.
$(STAMP): requirements/dev.txt $(BIN)/python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Vade needs Python 3.11 or newer, and $(PYTHON) is none: say which to take, as in make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	echo "$(PYTHON) comes without venv: install it (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Setting up .venv (once; about a minute) ..."
	@if test -e $@ && $(BIN)/python -m pip --version >/dev/null 2>&1; then rm $@; \
	else $(PYTHON) -m venv --clear .venv; fi
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# Missing, or a link to a Python that is gone.
$(BIN)/python:
	@rm -f $(STAMP)

.PHONY: lint-docker lint-openapi newman fuzz
check: lint-docker lint-openapi newman fuzz

lint-docker: setup $(NODE_STAMP) ## Check Dockerfile and docker-compose.yml
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/node node_modules/.bin/dclint --max-warnings 0 docker-compose.yml

lint-openapi: setup $(NODE_STAMP) ## Check the API's description
	@document=$$(mktemp -d) && trap 'rm -rf "$$document"' EXIT && \
	$(BIN)/python -m tests.openapi_document >"$$document/openapi.json" && \
	$(BIN)/node node_modules/.bin/spectral lint --quiet --fail-severity=hint --ruleset=.spectral.yaml "$$document/openapi.json"

fuzz: setup ## Let schemathesis look for what the API does otherwise than it says (SECONDS=300, SEED=7)
	@$(BIN)/python -m tests.fuzz

newman: setup $(NODE_STAMP) ## Walk the API with the Postman collection, on a database of its own
	@$(BIN)/python -m postman.run

# Fails where package-lock.json does not fit package.json.
$(NODE_STAMP): package.json package-lock.json .npmrc $(STAMP)
	@echo "Installing the tools of npm (once) ..."
	@$(BIN)/npm ci --loglevel=error >/dev/null
	@touch $@

.PHONY: stale bench scale chaos failover record
check: stale

stale: setup ## Check that what is made from the code is as the code makes it
	@fresh=$$(mktemp) && trap 'rm -f "$$fresh"' EXIT && \
	$(MAKE) --no-print-directory --silent schema SCHEMA="$$fresh" && \
	cmp -s docs/schema.sql "$$fresh" || { echo "docs/schema.sql is stale: run make schema." >&2; exit 1; }

bench: setup $(PEERS_STAMP) $(NODE_STAMP) ## Measure Vade beside its peers and its limits (some minutes; ONLY="peers api")
	@$(BIN)/python -m bench $(ONLY)

scale: setup ## Measure 10,000 to 5,000,000 companies, and a whole backlog (half an hour)
	@$(BIN)/python -m bench.scale

chaos: setup ## Kill, freeze and cut everything while money is collected, then audit (some minutes; ARGS="--seed 7")
	@$(BIN)/python -m chaos $(ARGS)

failover: setup ## Kill the primary, promote its standby, and look at the books
	@$(BIN)/python -m chaos.failover

record: setup ## Write down what this version says to the database, for the test of later migrations
	@$(BIN)/python -m tests.record_queries

.PHONY: messages
messages: setup ## Look for new texts of problems, and say which lack a translation
	@$(BIN)/python -m translations

# The queues that make bench compares with, where nothing else finds them.
$(PEERS_STAMP): requirements/peers.txt $(STAMP)
	@$(BIN)/python -m venv --clear .venv-peers
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/peers.txt
	@touch $@
