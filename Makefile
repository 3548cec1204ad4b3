# Thin: every target is one command that can be run by hand. `make` alone prints this help.

.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(PYTHON) -m pip --disable-pip-version-check --python
INSTALL := install -qq --require-hashes
DROPINS := feast hopsworks hsfs pai schemathesis valkey
# Tests run in so many processes, each with servers of its own, in the order of tests/conftest.py.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
ARGS ?=
# What is shipped, and what builds and tests it.
AUDITED ?= requirements-dev.lock requirements-files.lock

.PHONY: help run test test-slow test-faults check install install-dev dropin-environments verify fix clean \
	audit verify-lint verify-types verify-imports verify-protos verify-contracts verify-docs verify-locks \
	fix-lint fix-protos fix-docs fix-locks fix-schemas bench-registry bench-serving bench-instructions bench-loading \
	bench-memory bench-publish

help: ## Print this help
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

run: install ## Start everything on this machine (ARGS="--no-sample" and the like are passed on)
	@$(BIN)/triglot up $(ARGS)

test: install-dev dropin-environments ## All tests: units, real servers, compatibility cases, real clients
	$(PYTEST) -m "not slow and not faults" $(ARGS)

test-slow: install-dev dropin-environments ## What takes minutes and seldom finds anything new: benchmarks tried out, schemathesis
	$(PYTEST) -m slow $(ARGS)

test-faults: install-dev ## What breaks in production, under load: replicas, kill -9, upgrades (best as root, with nft and faketime)
	$(BIN)/python -m pytest -m faults $(ARGS)

check: install-dev ## The quick part, while you work: lint, types, imports, and what can be tested in two minutes
	@$(MAKE) --no-print-directory verify-lint verify-types verify-imports
	$(PYTEST) -m "not dropin and not stack and not long and not slow and not faults" $(ARGS)

verify: verify-lint verify-types verify-imports verify-protos verify-contracts verify-docs verify-locks ## All checks that are not tests

fix: fix-lint fix-protos fix-docs ## Mend what can be mended by machine

verify-lint: install-dev ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
fix-lint: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

verify-types: install-dev ## mypy --strict
	$(BIN)/mypy

verify-imports: install-dev ## Who may import whom (import-linter)
	$(BIN)/lint-imports

verify-protos: install-dev ## Generated stubs are what the .proto files say
	$(BIN)/python -m protos.generate --check
fix-protos: install-dev
	$(BIN)/python -m protos.generate

verify-contracts: install-dev ## buf: lint, and nothing that breaks the clients of the recorded commit
	$(BIN)/buf lint
	$(BIN)/buf breaking --against '.git#ref=$(shell cat protos/BASELINE)'

verify-docs: install-dev ## docs/configuration.md lists every setting
	$(BIN)/python -m triglot.reference --check
fix-docs: install-dev
	$(BIN)/python -m triglot.reference

fix-schemas: install-dev ## Record the schemas that the migrations make, after a new migration
	TRIGLOT_RECORD_SCHEMAS=1 $(BIN)/python -m pytest tests/test_schemas.py

verify-locks: ## Lock files name no index and no host
	@! grep -nE 'https?://|file:|--(extra-)?index|find-links' $$(git ls-files '*.lock')
fix-locks: ## Resolve all lock files again (needs uv)
	scripts/lock

install: .venv/.run ## Make .venv and install the locked dependencies
install-dev: .venv/.dev ## The same, with what the tests need
dropin-environments: $(DROPINS:%=.venv-%/.ready) ## Environments of the real clients

# A bare Debian has no ensurepip: make the environment without pip and install into it from outside.
.venv/.run: requirements.lock requirements-files.lock pyproject.toml
	@echo "Installing the locked dependencies into .venv (once, under a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	@$(PIP) $(BIN)/python $(INSTALL) -r requirements.lock
	@$(PIP) $(BIN)/python $(INSTALL) --no-deps --no-build-isolation -r requirements-files.lock
	@$(PIP) $(BIN)/python install -qq --no-deps --no-build-isolation --editable .
	@touch $@
.venv/.dev: .venv/.run requirements-dev.lock
	@$(PIP) $(BIN)/python $(INSTALL) -r requirements-dev.lock
	@touch $@
define environment
	@test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	@$(PIP) $(@D)/bin/python $(INSTALL) -r $<
	@touch $@
endef
.venv-%/.ready: tests/dropin/%/requirements.lock
	$(environment)

audit: .venv-audit/.ready ## Known holes in what is locked (asks PyPI; before a release, and once a day)
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner=off $(AUDITED:%=--requirement=%)
.venv-audit/.ready: scripts/audit.lock
	$(environment)

# Feast's own server, as what Triglot's registry is measured beside.
.venv-feast-bench/.ready: benchmarks/feast/requirements.lock
	$(environment)

bench-registry: install .venv-feast-bench/.ready ## Triglot's registry beside Feast's (ARGS="--only triglot" and the like)
	$(BIN)/python -m benchmarks.registry $(ARGS)

bench-serving: install .venv-feast-bench/.ready ## Feature vectors beside Feast's (ARGS="--rounds 10" and the like)
	$(BIN)/python -m benchmarks.serving $(ARGS)

bench-instructions: install ## Instructions of a request for vectors, counted by valgrind (ARGS='--shapes "1 x 10"')
	$(BIN)/python -m benchmarks.instructions $(ARGS)

bench-memory: install .venv-feast-bench/.ready ## Bytes of Redis for a row, in Triglot's layout and in Feast's (ARGS="--rows 50000")
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-publish: install ## Parquet into online rows by PAI's publish: rows/s, memory, workers (ARGS="--rows 200000")
	$(BIN)/python -m benchmarks.publish $(ARGS)

bench-loading: install ## A Parquet file into Redis through `triglot load` (ARGS="--rows 5000000")
	$(BIN)/python -m benchmarks.loading $(ARGS)

clean: ## Remove environments and caches (not the data in .triglot)
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
