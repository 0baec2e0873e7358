# Everything a developer or a build machine runs. `make help` lists the targets.
#
# The package is built once, as a release wheel, and installed into .venv; the Python suites, the
# demo and the bench all run against that installed wheel. Nothing outside the repository is
# changed but by `deps`, which installs missing system packages when it runs as root.

VENV := .venv
BIN := $(VENV)/bin
CARGO ?= cargo
# The oldest interpreter that the package takes comes first: what it accepts, all accept.
PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(shell \
    $(name) -c 'import sys; print(sys.executable) if sys.version_info >= (3, 11) else None' \
    2>/dev/null)))
PYTEST_ARGS ?=
BENCH_ARGS ?=
NEXT ?= minor
# Connections that a test opens at random; 1000000 take some minutes.
MODEL_SEQUENCES ?= 400000
# Ends a test program that hangs, which takes minutes otherwise. Cargo names the test before.
LIMIT := timeout --verbose --kill-after=10 20m

# One target directory for everything, the peers' own workspace too, whoever sets it.
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# The extension module is always built for the interpreter that will load it, so that clippy and
# the wheel share what they compile.
export PYO3_PYTHON := $(abspath $(BIN)/python)
WHEELS := $(CARGO_TARGET_DIR)/wheels

RELEASE := PYTHONPATH=tests $(BIN)/python -m release
TOOLS := $(VENV)/.tools
WHEEL_TOOLS := $(VENV)/.wheel-tools
DOC_TOOLS := $(VENV)/.doc-tools
PACKAGE := $(VENV)/.package
DIST ?= dist
ARM64 := $(CARGO_TARGET_DIR)/arm64
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(wildcard README.md) \
    $(shell find rust python -type f ! -name '*.pyc' ! -path 'rust/*/tests/*')
PEERS := tests/peers/std tests/peers/xen

.DELETE_ON_ERROR:
.PHONY: help build build-arm64 demo test lint test-rust protocol-page test-peers test-python test-guest guest-deps \
    test-dpdk dpdk-deps test-prometheus prometheus-deps test-xen test-xen-all xen-deps bench deps clean \
    wheels check-wheels test-wheels docs release

help: ## Shows this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: $(PACKAGE) ## Leaves .venv with a release build of the package installed.

build-arm64: $(ARM64)/.package ## Builds the wheel for Arm64, with a compiler from Debian's archive in .cache.

demo: build ## Serves a RAM disk, drives it through its socket and checks every byte.
	$(BIN)/vhost-user demo

test: lint docs test-rust test-peers deps guest-deps dpdk-deps prometheus-deps xen-deps build build-arm64 ## Runs every check and every test.
	$(BIN)/pytest -n 2 --dist loadgroup $(PYTEST_ARGS) tests
	$(if $(PYTEST_ARGS),,$(RELEASE).tree)

lint: $(TOOLS) $(DOC_TOOLS) ## Checks format, lints and types, with warnings as errors.
	$(CARGO) fmt --all --check
	$(foreach peer,$(PEERS),$(CARGO) fmt --manifest-path $(peer)/Cargo.toml --check &&) true
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(foreach peer,$(PEERS),$(CARGO) clippy --locked --manifest-path $(peer)/Cargo.toml \
	    --all-targets -- -D warnings &&) true
	rustfmt --edition 2024 --check tests/guest/rig/verifier.rs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-rust: deps ## Runs the core's own tests.
	MODEL_SEQUENCES=$(MODEL_SEQUENCES) $(LIMIT) $(CARGO) test --locked -p vhost-user-core -p vhost-user-python

protocol-page: ## Writes the tables of docs/protocol.md anew, from the core and the names of its tests.
	PROTOCOL_PAGE=write $(CARGO) test --locked -p vhost-user-core --test connection page::

test-peers: ## Drives the core with front-ends of another project, and its back-end with the core.
	$(foreach peer,$(PEERS),$(LIMIT) $(CARGO) test --locked --manifest-path $(peer)/Cargo.toml &&) true

test-python: deps build ## Runs the Python suites but for those that start a machine.
	$(BIN)/pytest -n 2 --dist loadgroup $(PYTEST_ARGS) --ignore tests/guest --ignore tests/dpdk \
	    --ignore tests/prometheus --ignore tests/xen tests

test-guest: guest-deps build ## Runs a Linux guest in QEMU on devices of the package.
	$(BIN)/pytest $(PYTEST_ARGS) tests/guest

test-dpdk: dpdk-deps build ## Runs DPDK's driver of network devices on devices of the package.
	$(BIN)/pytest $(PYTEST_ARGS) tests/dpdk

test-prometheus: prometheus-deps build ## Has a real Prometheus scrape a back-end.
	$(BIN)/pytest $(PYTEST_ARGS) tests/prometheus

test-xen: xen-deps build build-arm64 ## Runs the tests of dom0 on Xen 4.17 (PV, Arm64) and 4.20 (PVH) in QEMU: 4 minutes.
	$(BIN)/pytest -n 2 $(PYTEST_ARGS) tests/xen

test-xen-all: build build-arm64 ## The same with more kinds of dom0, eight in all: 10 minutes.
	PYTHONPATH=tests $(BIN)/python -m xen.rig fetch all
	XEN_KINDS=all $(BIN)/pytest -n 2 $(PYTEST_ARGS) tests/xen

wheels: $(WHEEL_TOOLS) ## Builds the source archive and the wheels of a release into dist, and checks them.
	rm -rf $(DIST)
	$(RELEASE).build $(DIST)
	$(RELEASE).check $(DIST)

check-wheels: $(WHEEL_TOOLS) ## Checks what is in dist.
	$(RELEASE).check $(DIST)

test-wheels: $(WHEEL_TOOLS) ## Tries what is in dist: on old systems, without the network, built again, in clean systems.
	$(RELEASE).load $(DIST)
	$(RELEASE).offline $(DIST)/vhost_user-*.tar.gz
	$(RELEASE).again $(DIST)
	$(RELEASE).trial --table docs/install.md $(DIST)

# With --quiet mkdocs counts no warning, and --strict none of them.
docs: $(DOC_TOOLS) ## Makes the documentation's site in target/site, and checks its links.
	$(BIN)/mkdocs build --config-file website/mkdocs.yml --site-dir $(CARGO_TARGET_DIR)/site

release: $(TOOLS) ## Commits and tags the next version, NEXT=major, minor, patch or X.Y.Z, of a tree that make test has passed.
	$(RELEASE).prepare $(NEXT)

bench: build ## Measures side by side with other back-ends; needs two free cores.
	.ci/deps bench
	$(BIN)/python -m benches $(BENCH_ARGS)

deps: ## Installs the system packages that the tests need, or says which are missing.
	.ci/deps test

guest-deps: $(TOOLS) ## Downloads QEMU and kernels, old and new, into .cache (300 MB), installing nothing.
	PYTHONPATH=tests $(BIN)/python -m guest.rig fetch

dpdk-deps: $(TOOLS) ## Downloads DPDK's test program into .cache (35 MB), installing nothing.
	PYTHONPATH=tests $(BIN)/python -m dpdk.rig fetch

prometheus-deps: $(TOOLS) ## Downloads Prometheus into .cache (80 MB), installing nothing.
	-PYTHONPATH=tests $(BIN)/python -m prometheus.rig fetch

xen-deps: $(TOOLS) ## Downloads Xen, dom0 kernels and QEMU into .cache (400 MB, 1.7 GB unpacked).
	PYTHONPATH=tests $(BIN)/python -m xen.rig fetch

clean: ## Removes what the build and the tests left.
	$(CARGO) clean
	rm -rf $(VENV) dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests benches examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(TOOLS): requirements-dev.txt
	$(if $(PYTHON),,$(error CPython 3.11 or newer is needed: set PYTHON to its path))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(WHEEL_TOOLS): $(TOOLS) requirements-wheels.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-wheels.txt
	touch $@

$(DOC_TOOLS): $(TOOLS) requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

$(PACKAGE): $(TOOLS) $(SOURCES)
	rm -f $(WHEELS)/vhost_user-*.whl
	$(BIN)/maturin build --release --locked --compatibility linux \
	    --interpreter $(BIN)/python --out $(WHEELS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
	    --force-reinstall $(WHEELS)/vhost_user-*.whl
	touch $@

$(ARM64)/.package: $(TOOLS) $(SOURCES) tests/rig/cross.py
	rm -f $(ARM64)/vhost_user-*.whl
	PYTHONPATH=tests CARGO_TARGET_DIR=$(ARM64) $(BIN)/python -m rig.cross \
	    $(BIN)/maturin build --release --locked --compatibility linux \
	    --target aarch64-unknown-linux-gnu --interpreter python3.11 --out $(ARM64)
	touch $@
