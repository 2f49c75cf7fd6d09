# `make run` and `make test` need Python >= 3.11 and Rust, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.forebay
SOURCES := $(shell find rust benches/micro -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock pyproject.toml constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup run test test-rust test-python lint bench load sim soak protos compat clean help prerequisites
.DELETE_ON_ERROR:

help:
	@echo "make run    gateway, database and simulated engine; prints a key and a curl line"
	@echo "make test   every test        make lint    every check"
	@echo "make bench  micro-benchmarks  make load    whole-gateway benchmark"
	@echo "make sim    limits of many nodes, simulated"
	@echo "make compat SDKs of others, also JavaScript's (needs Node 20)"
	@echo "make protos Python's code from the gRPC protos"

prerequisites:
	@command -v $(PYTHON) >/dev/null || { echo "forebay: Python 3.11 or newer is needed ($(PYTHON) is not there)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "forebay: Python 3.11 or newer is needed; set PYTHON=… (found $$($(PYTHON) --version))" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "forebay: Python's venv module is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "forebay: Rust 1.88 or newer is needed (cargo is not there; see rustup.rs)" >&2; exit 1; }

setup: prerequisites $(STAMP)-core

$(STAMP)-packages: pyproject.toml constraints.txt engine/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "maturin>=1.16,<2"
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print("\n".join(p["dependencies"] + p["optional-dependencies"]["dev"]))' > $(STAMP)-requirements
	$(BIN)/pip install --quiet --constraint constraints.txt -r $(STAMP)-requirements
	$(BIN)/pip install --quiet --constraint constraints.txt -e engine
	@touch $@

# maturin builds the extension in place; what has not changed is not built again.
$(STAMP)-core: $(STAMP)-packages $(SOURCES)
	@echo "building the core (a first build takes some minutes)"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --quiet --release > $(STAMP)-build.log 2>&1 || { cat $(STAMP)-build.log >&2; exit 1; }
	@touch $@

run: setup
	$(BIN)/forebay dev

test: test-rust test-python

test-rust: setup
	cargo test --quiet --profile checked --workspace --exclude forebay-python

test-python: setup
	$(BIN)/python -m pytest -q

# Packages of others for which the gateway's own tests have no room; needs Node and a registry.
COMPAT := .venv-compat

$(COMPAT)/.installed: tests/compat/python/requirements.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/pip install --quiet -r $<
	@touch $@

tests/compat/node_modules/.package-lock.json: tests/compat/package-lock.json
	@command -v npm >/dev/null || { echo "forebay: make compat needs Node 20 or newer with npm" >&2; exit 1; }
	npm ci --silent --no-audit --no-fund --prefix tests/compat
	@touch $@

compat: setup $(COMPAT)/.installed tests/compat/node_modules/.package-lock.json
	$(BIN)/python -m tests.compat.run

lint: setup
	cargo fmt --check
	cargo clippy --quiet --release --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest forebay._core

bench: setup
	$(BIN)/python -m pytest benches/micro -q --benchmark-only
	cargo bench --quiet --package forebay-core

load: setup
	$(BIN)/python benches/load/run.py --out benches/load/results $(ARGS)

sim:
	cargo run --quiet --release --package forebay-sim -- --docs docs $(ARGS)

protos: setup
	$(BIN)/python protos/generate.py $(ARGS)
	$(BIN)/python engine/protos/generate.py

soak: setup
	$(BIN)/python benches/load/soak.py $(ARGS)

clean:
	rm -rf target $(VENV) .venv-compat tests/compat/node_modules .forebay
