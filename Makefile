# `make run` and `make test` need Python >= 3.11 and Rust, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.forebay
SOURCES := $(shell find rust benches/micro -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock pyproject.toml constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup run test test-rust test-python lint bench load sim soak protos compat edge-test image-test engine-test clean help prerequisites
.DELETE_ON_ERROR:

help:
	@echo "make run    gateway, database and simulated engine; prints a key and a curl line"
	@echo "make test   every test        make lint    every check"
	@echo "make bench  micro-benchmarks  make load    whole-gateway benchmark"
	@echo "make sim    limits of many nodes, simulated"
	@echo "make compat SDKs of others, also JavaScript's (needs Node 20)"
	@echo "make edge-test behind nginx, with restarts; make image-test the image's steps in a chroot (root)"
	@echo "make engine-test a real SGLang on this CPU behind the gateway (ENGINE=gpu: on a GPU)"
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

# The same examples each time, as in Python's tests; an empty SEED seeks new ones.
SEED ?= 7

test-rust: setup
	$(if $(SEED),PROPTEST_RNG_SEED=$(SEED)) cargo test --quiet --profile checked --workspace --exclude forebay-python

# Helm's library, hadolint and a PromQL parser: large, and only the tests of deploy/ need them.
$(STAMP)-deploy: $(STAMP)-packages
	@$(BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["deploy"]))' > $@-requirements
	$(BIN)/pip install --quiet --constraint constraints.txt -r $@-requirements
	@touch $@

test-python: setup $(STAMP)-deploy
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

# nginx in front of real gateways, which are restarted for a minute at 200 requests a second.
edge-test: setup
	FOREBAY_ROLLING_LONG=1 $(BIN)/python -m pytest -q -s tests/deploy/test_nginx.py tests/deploy/test_rolling.py tests/deploy/test_systemd.py $(ARGS)

# The image's steps in a clean Debian; as root, with debootstrap and a network.
image-test: setup
	$(BIN)/python -m tests.deploy.chroot $(ARGS)

# A real engine: 3.4 GB (more with a torch for CUDA). ENGINE=gpu runs SGLang's own command on a GPU,
# MODEL=FOLDER another model than the tiny one that is made on the spot.
ENGINE ?= cpu
ifeq ($(filter engine-test,$(MAKECMDGOALS))$(filter cpu gpu,$(ENGINE)),engine-test)
$(error ENGINE: expected cpu or gpu, got $(ENGINE))
endif
ENGINE_VENV := $(if $(filter gpu,$(ENGINE)),.venv-engine-gpu,.venv-engine)
ENGINE_PYTHON ?= $(CURDIR)/$(ENGINE_VENV)/bin/python

.venv-engine/.installed: tests/engine_real/requirements.txt tests/engine_real/requirements-bare.txt
	@echo "installing SGLang for the CPU (some minutes)"
	test -x .venv-engine/bin/python || $(PYTHON) -m venv .venv-engine
	.venv-engine/bin/pip install --quiet -r tests/engine_real/requirements.txt
	.venv-engine/bin/pip install --quiet --no-deps -r tests/engine_real/requirements-bare.txt
	@touch $@

.venv-engine-gpu/.installed: tests/engine_real/requirements-gpu.txt
	test -x .venv-engine-gpu/bin/python || $(PYTHON) -m venv .venv-engine-gpu
	.venv-engine-gpu/bin/pip install --quiet -r $<
	@touch $@

ifeq ($(ENGINE)$(shell command -v nvidia-smi),gpu)
engine-test:
	@echo "engine-test skipped: ENGINE=gpu, and there is no NVIDIA GPU here (no nvidia-smi)"
else
engine-test: setup $(if $(filter file,$(origin ENGINE_PYTHON)),$(ENGINE_VENV)/.installed)
	FOREBAY_ENGINE_PYTHON=$(ENGINE_PYTHON) ENGINE=$(ENGINE) MODEL=$(MODEL) $(BIN)/python -m tests.engine_real.run $(ARGS)
endif

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
	rm -rf target $(VENV) .venv-compat .venv-engine .venv-engine-gpu tests/compat/node_modules .forebay
