# `make` alone prints the targets. Every target sets up .venv by itself, from a fresh clone with python, pip, make, git.

SHELL := /bin/sh
BIN := .venv/bin
STAMP := .venv/.complete
# Exact, so that a fresh clone resolves and checks the lock as its authors did.
UV := uv==0.13.9

# uv must use our .venv, whatever environment happens to be active, and never fetch a Python of its own.
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak check fix bench results pages metrics picture image k8s-check k8s-play clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv with the locked dependencies

# PYTHON=... names the interpreter; otherwise the first that runs and is of a version Bytewax has wheels for.
$(STAMP): pyproject.toml uv.lock
	@set -e; \
	if ! $(BIN)/python -m uv --version >/dev/null 2>&1; then \
		for python in $(or $(PYTHON),python3.11 python3.12 python3) ''; do \
			test -n "$$python" || { echo 'make: no Python 3.11 or 3.12 found; name one: make setup PYTHON=/path/to/python' >&2; exit 1; }; \
			$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1 && break; \
		done; \
		echo "setup: .venv with $$($$python --version)"; \
		$$python -m venv --clear .venv; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV)'; \
	echo 'setup: the dependencies of uv.lock'; \
	$(BIN)/uv sync --quiet --frozen --inexact; \
	touch $@

demo: $(STAMP) ## run the main job: a year of flights into an embedded JetStream; BROKER=kafka: into Kafka
	@FLIGHTS_BROKER=$(or $(BROKER),jetstream) $(BIN)/python -m flows.flights

test: $(STAMP) ## run the tests, against real servers, on every core; PHASES='unit recovery': only these
	@$(BIN)/python -m tests.support.phases $(PHASES)

soak: $(STAMP) ## play 150 kill and fault cycles, then the tests too long for make test; CYCLES=jetstream:20,kafka:5: only these
	@status=0; \
	$(BIN)/python -m tests.support.soak $(CYCLES) --jobs $(or $(JOBS),2) || status=1; \
	$(if $(CYCLES),,$(BIN)/pytest -m soak || status=1;) \
	exit $$status

# What only the check of k8s/ needs, and the small library that makes the dashboard for its test.
K8S_STAMP := .venv/.k8s
$(K8S_STAMP): $(STAMP)
	@$(BIN)/uv sync --quiet --frozen --inexact --group k8s --group dashboard
	@touch $@

check: $(K8S_STAMP) ## format, lint, types, import rules, lock, k8s/: nothing is changed
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/uv lock --check --quiet
	@$(BIN)/hadolint k8s/Dockerfile
	@$(BIN)/pytest -q -n0 tests/unit/k8s/test_overlays.py tests/unit/k8s/test_network_policies.py

fix: $(STAMP) ## format, and fix what the linter can fix
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --fix

bench: $(STAMP) ## measure every way to publish beside every other: make bench OPTIONS='--help'
	@$(BIN)/bytewax-jetstream bench $(OPTIONS)

RESULTS := tests/benchmark/results
MEASURE := $(BIN)/bytewax-jetstream bench --check --rounds 5

results: $(STAMP) ## measure everything again that the pages show
	$(MEASURE) --scenarios low,medium,high,extreme --json $(RESULTS)/report.json --plot $(RESULTS)/report.svg
	$(MEASURE) --scenarios sustained --strategies sync,async,raw,pool,batch,lean,flow --json $(RESULTS)/sustained.json
	$(MEASURE) --scenarios low,medium,high,extreme,sustained,million --strategies flow --json $(RESULTS)/growth.json
	$(MEASURE) --scenarios paced --brokers jetstream,kafka --strategies sync,async,batch,flow --json $(RESULTS)/paced.json
	$(MEASURE) --scenarios extreme --strategies sync,batch --ack-workers 1,2,4,48 --json $(RESULTS)/workers.json
	$(MEASURE) --scenarios extreme --strategies async,batch --max-pending 256,4000,16000,100000 --json $(RESULTS)/pending.json
	$(MEASURE) --scenarios sustained --strategies batch,flow --max-pending 4000,16000,100000 --json $(RESULTS)/budget.json
	$(MEASURE) --scenarios extreme --strategies sync,pool,batch,lean,flow --payload 128,1024,16384 --json $(RESULTS)/payload.json
	$(MEASURE) --scenarios extreme --strategies sync,async,flow --batch 1,10,100,1000 --json $(RESULTS)/batches.json
	$(MEASURE) --scenarios low,medium,high,extreme --strategies flow --rounds 20 --json $(RESULTS)/memory.json
	$(MEASURE) --scenarios extreme --strategies flow --storage file,memory --json $(RESULTS)/storage.json
	$(MEASURE) --scenarios low,medium,high,extreme,sustained --strategies flow --brokers jetstream,kafka --ids msgid,header \
		--json $(RESULTS)/brokers.json
	$(MEASURE) --scenarios extreme --strategies sink,confluent,flow --brokers kafka --payload 128 --batch 1,10,100,1000 --json $(RESULTS)/kafka.json
	$(MEASURE) --scenarios sustained --strategies sync,pool,batch,lean,flow --ids msgid,header --json $(RESULTS)/ids.json
	@$(MAKE) --no-print-directory pages

pages: $(STAMP) ## fill the numbers of the pages from the results files, and docs/commands.md
	@$(BIN)/bytewax-jetstream bench --fill README.md,docs/performance.md,tests/benchmark/README.md
	@$(BIN)/python -m tests.support.commands_page

metrics: $(STAMP) ## make the table of metrics, and the Grafana dashboard, from the code
	@$(BIN)/python -m bytewax_jetstream.metrics docs/metrics.md
	@$(BIN)/uv sync --quiet --frozen --inexact --group dashboard
	@$(BIN)/python -m k8s.components.monitoring.dashboard

picture: $(STAMP) ## draw docs/metrics.svg: a flow through a short outage, as Prometheus saw it; needs Debian's prometheus
	@$(BIN)/python -m tests.support.picture docs/metrics.svg

image: $(STAMP) ## build the container image with buildah; BASE=debian: without a registry of images; NAME=...: its name
	@$(BIN)/python -m tests.support.containers $(if $(BASE),--base $(BASE)) $(if $(NAME),--name $(NAME))

k8s-check: $(STAMP) ## ask a real kube-apiserver about every overlay; builds it the first time, with Go
	@$(BIN)/python -m tests.support.k8s.check

k8s-play: $(STAMP) ## run the pods of the overlay for development with podman: publish, kill NATS, resume, scrape
	@$(BIN)/python -m tests.support.k8s.play

clean: ## remove .venv, caches and what runs left behind
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist flows/.run
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
