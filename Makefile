# The only door: `make` says what there is.

PYTHON ?= python3
# On a machine without a GPU any CPU build of this version will do: make TORCH='torch==2.13.0+cpu'
TORCH ?= torch==2.13.0
NAME ?=
RUN ?=
ARGS ?=
MINUTES ?= 10
SEED ?= 1
COUNT ?= 60
SEEDS ?=
PEERS ?=
ROUNDS ?=
# test files run at the same time, one more than cores since most of the network's wait; 0: one after the other, in
# make's own process
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Files in the order of tests/conftest.py, not by their number of tests.  What pytest makes of their code is kept, whatever
# the environment says: each worker would take seconds to make it again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## what can be made
	@echo 'p2pdfl: train one model together with peers you do not trust.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-24s %s\n", $$1, $$2 }'
	@echo
	@echo '  make scenario NAME=...: $(sort $(basename $(notdir $(wildcard scenarios/*.toml))))'

.PHONY: setup
setup: $(READY) ## .venv with everything in it; all others do this by themselves

# Again when what is to be installed changes; else it costs nothing.
$(READY): pyproject.toml packaging/setup.sh $(wildcard packaging/*/pyproject.toml)
	@PYTHON='$(PYTHON)' TORCH='$(TORCH)' VENV='$(VENV)' sh packaging/setup.sh
	@touch $@

.PHONY: scenario-byzantine
scenario-byzantine: NAME := byzantine
scenario-byzantine: scenario ## eight peers, two cheat, both are caught and slashed

.PHONY: scenario-vanish
scenario-vanish: NAME := vanish
scenario-vanish: scenario ## sixteen peers, audits alone: five push the model away and vanish one after the other

.PHONY: scenario
scenario: $(READY) ## NAME=...: one of scenarios/, or a file of your own
	@test -n '$(NAME)' || { echo 'which one?  make scenario NAME=$(firstword $(sort $(basename $(notdir $(wildcard scenarios/*.toml)))))' >&2; exit 2; }
	@$(BIN)/p2pdfl scenario '$(NAME)' $(ARGS)

.PHONY: verify
verify: $(READY) ## RUN=runs/NAME: check a finished run again; ARGS='--replay 20' trains updates again
	@test -n '$(RUN)' || { echo 'which one?  make verify RUN=runs/byzantine' >&2; exit 2; }
	@$(BIN)/p2pdfl verify '$(RUN)' $(ARGS)

.PHONY: test
test: $(READY) ## all tests but those of test-long; ARGS='-k beacon' and the like go to pytest
	@$(PYTEST) -m 'not long' $(ARGS)

.PHONY: test-fast
test-fast: $(READY) ## those without sockets and processes that take less than 0.25 s each: under a minute
	@$(PYTEST) -m 'not (slow or net or scenario)' --durations 5 --durations-min 0.25 $(ARGS)

.PHONY: test-long
test-long: $(READY) ## hostile peers at every layer, routers, relays, the doctor, most scenarios: a quarter of an hour
	@$(PYTEST) -m long $(ARGS)

.PHONY: check
check: static test ## format, lint, types, import rules, contract artefact, tests

# What test does not run.
.PHONY: static
static: format-check lint types imports contracts-check

.PHONY: fmt
fmt: $(READY) ## put the code into its format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only .

.PHONY: format-check lint types imports
format-check: $(READY)
	@$(BIN)/ruff format --check .

lint: $(READY)
	@$(BIN)/ruff check .

types: $(READY)
	@$(BIN)/mypy

imports: $(READY)
	@$(BIN)/lint-imports

.PHONY: contracts contracts-check
contracts: $(READY) ## compile the contract into the artefact that the package carries
	@$(BIN)/python contracts/build.py

contracts-check: $(READY)
	@$(BIN)/python contracts/build.py --check

.PHONY: vectors
vectors: $(READY) ## docs/wire-vectors.json, after a change of the wire format that is meant
	@PYTHONPATH=tests $(BIN)/python -m wire.vectors docs/wire-vectors.json

.PHONY: interop
interop: $(READY) ## two js-libp2p nodes follow a small run and check all of it; needs node 20 and npm
	@if ! command -v node > /dev/null || ! command -v npm > /dev/null; then \
		echo 'interop: SKIPPED: node and npm are not both installed'; \
	elif ! node -e 'process.exitCode = parseInt(process.versions.node) < 20 ? 1 : 0'; then \
		echo "interop: SKIPPED: node is $$(node --version), 20 or newer is needed"; \
	else $(MAKE) --no-print-directory interop-run; fi

.PHONY: interop-run
interop-run: interop/node_modules/.ready
	@node interop/check.mjs docs/wire-vectors.json
	@$(BIN)/python interop/run.py

interop/node_modules/.ready: interop/package-lock.json
	@cd interop && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

SIM_SIZE = $(if $(PEERS),--peers $(PEERS)) $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: sim sim-hunt
sim: $(READY) ## SEED=1 PEERS= ROUNDS=: one simulated run with its faults and liars; ARGS=--first-difference: where two part
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m p2pdfl.sim replay --seed '$(SEED)' $(SIM_SIZE) $(ARGS)

sim-hunt: $(READY) ## MINUTES=10 or SEEDS=0:1000: simulated runs until one breaks something; ARGS='--plant quorum'
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m p2pdfl.sim hunt $(if $(SEEDS),--seeds '$(SEEDS)',--minutes '$(MINUTES)') $(SIM_SIZE) $(ARGS)

.PHONY: study
study: NAME := byzantine
study: $(READY) ## NAME=byzantine: attacks beside rules beside audits, as tables; one of studies/, or a file of your own
	@OPENBLAS_NUM_THREADS=1 $(BIN)/p2pdfl study '$(NAME)' $(ARGS)

.PHONY: bench
bench: $(READY) ## what a round costs a peer, part by part; gossip beside the library's; training, aggregation and pulls by themselves
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/round.py
	@$(BIN)/python benchmarks/network.py
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/training.py
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/aggregate.py
	@$(BIN)/python benchmarks/pull.py

.PHONY: fuzz
fuzz: $(READY) ## MINUTES=10: what strangers' bytes can do to the codec, gossip's frames, pulls and updates, by coverage
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check -e '.[fuzz]'
	@cd tests && PYTHONPATH=..:. ../$(BIN)/python -m fuzz --minutes '$(MINUTES)' $(ARGS)

.PHONY: mutants
mutants: $(READY) ## SEED=1 COUNT=60: random one-line mutants of protocol/ and crypto/, and named ones: which do the tests miss?
	@cd tests && PYTHONPATH=..:. ../$(BIN)/python -m mutants --seed '$(SEED)' --count '$(COUNT)' $(ARGS)

.PHONY: clean
clean: ## remove what make made: .venv, caches; runs/ stays
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf interop/node_modules
	rm -rf *.egg-info packaging/*/*.egg-info packaging/*/build
	find p2pdfl tests contracts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
