# Everything a person needs here. `make help` lists it; a fresh clone needs nothing before it.
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.karvon-installed
ARGS ?=
PYTEST_ARGS ?=
# tests that failed are asked once more, alone: four at a time share two cores
AGAIN ?= tools/again
SIDE_BY_SIDE ?= -n 4 --dist loadfile --no-loadscope-reorder
MAKEFLAGS += --no-print-directory
export PYTHONUNBUFFERED := 1
# hundreds of processes are started; without bytecode each would compile everything anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup check test demo bench torture services services-stop clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

setup: $(STAMP) ## the virtual environment with everything in it

$(STAMP): setup.cfg pyproject.toml tools/bootstrap
	@VENV="$(VENV)" tools/bootstrap >&2
	@touch $@

check: setup ## ruff, mypy and the import contracts
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

test: check ## every test against real services, in under ten minutes
	@$(PY) tools/services.py --in-memory run -- $(AGAIN) $(PY) -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

torture: setup ## the same tests at full counts; writes docs/torture.md
	@$(PY) tools/services.py run -- $(PY) -m pytest --torture --torture-report=docs/torture.md --timeout 0 $(SIDE_BY_SIDE) $(PYTEST_ARGS)

demo: setup ## a whole network on this machine; ARGS="--once --json" for scripts
	@$(VENV)/bin/karvon demo $(ARGS)

bench: setup ## one JSON line per figure
	@$(PY) tools/services.py run -- $(PY) tests/benchmarks/run.py $(ARGS)

services: setup ## start TimescaleDB and Mosquitto for tests, on ports of their own; idempotent
	@$(PY) tools/services.py start

services-stop: ## stop what `make services` started here
	@if [ -x $(PY) ]; then $(PY) tools/services.py stop; else python3 tools/services.py stop; fi

clean: ## forget everything that was built here
	@python3 tools/services.py forget
	@rm -rf .venv .services .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info htmlcov .coverage
