# `make run` and `make test` do all of their own set-up on a fresh machine that has Rust (rustup.rs) and Python 3.11+.

VENV := .venv
TOOLS := .tools
DENY_VERSION := 0.20.2
# `required` makes `make deny` fail where the database of advisories can't be reached; otherwise it says so and goes on.
ADVISORIES ?= if-reachable
ADVISORY_DATABASE := https://github.com/RustSec/advisory-db
BIN := $(VENV)/bin
PYTHON ?= python3
ARGS ?=
URL ?=
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# What is built is looked for in ./target.
unexport CARGO_TARGET_DIR
export SAM_CLI_TELEMETRY := 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: run
run: setup ## Start the whole system on this machine (ARGS="--port 9000": options, see --help)
	cargo build --workspace --bins
	exec target/debug/local run $(ARGS)

.PHONY: demo
demo: ## In a second terminal: send the sample events through webhooks and queues, show what the hub then holds
	cargo build --package local
	target/debug/local demo $(ARGS)

.PHONY: replay
replay: ## Send the rejected events of `make run` again, after a mapping or option was fixed (ARGS=--dry-run: only show them; URL=http://…: not on port 8080)
	cargo build --quiet --package relayctl
	target/debug/relayctl replay --local $(URL) $(ARGS)

.PHONY: relayctl
relayctl: ## Show, retry or drop parked messages, replay rejected events (ARGS="parked list --local", ARGS=--help)
	cargo build --quiet --package relayctl
	target/debug/relayctl $(ARGS)

.PHONY: test
test: setup browser ## Run all tests
	cargo build --workspace --bins
	cargo test --workspace $(ARGS)

.PHONY: screenshot
screenshot: setup browser ## Make docs/console.png anew
	cargo build --workspace --bins
	SCREENSHOTS=$(CURDIR)/docs cargo test --package tests --test it the_console_shows_that_an_outage_loses_no_event

.PHONY: faults
faults: setup ## Send 100,000 events while everything fails in turns, account for every one (ARGS=--help: other forms)
	cargo build --workspace --bins
	cargo run --quiet --package tests --bin faults -- $(ARGS)

.PHONY: check
check: setup ## Formatting, lints, template
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/sam validate --lint

.PHONY: deny
deny: $(TOOLS)/.cargo-deny-$(DENY_VERSION) ## Dependencies: banned crates, licences, sources, known vulnerabilities
	$(TOOLS)/bin/cargo-deny check bans licenses sources
	@if timeout 30 git ls-remote --quiet $(ADVISORY_DATABASE) HEAD >/dev/null 2>&1; then \
	  $(TOOLS)/bin/cargo-deny check advisories; \
	elif [ "$(ADVISORIES)" = required ]; then \
	  echo "advisories: $(ADVISORY_DATABASE) can't be reached"; exit 1; \
	else \
	  echo "advisories: NOT CHECKED, since $(ADVISORY_DATABASE) can't be reached"; \
	fi

# Without optimisation, which takes longer than its checks.
$(TOOLS)/.cargo-deny-$(DENY_VERSION):
	cargo install --quiet --debug --locked --version =$(DENY_VERSION) --root $(TOOLS) cargo-deny
	@touch $@

.PHONY: sam
sam: setup ## Validate the template and build every function for deployment (ARCHITECTURE=x86_64 for this machine's)
	$(BIN)/sam validate --lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/sam build $(FUNCTION) $(if $(ARCHITECTURE),--parameter-overrides Architecture=$(ARCHITECTURE))

.PHONY: bench
bench: ## Measure the functions against the floor of their stack, Python and Node (ARGS="--quick"; others: --help)
	cargo build --release --quiet --package bench
	target/release/bench $(ARGS)

.PHONY: setup
setup: $(VENV)/.installed ## Install what the other targets need

$(VENV)/.installed: requirements.txt
	@command -v cargo >/dev/null || { echo "Rust is missing: install it from https://rustup.rs"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@command -v cc >/dev/null && $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory packages
	$(PYTHON) -m venv $(VENV)
	# Only wheels, all of them listed: a source distribution would run build tools that have no hash.
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps --require-hashes -r requirements.txt
	$(BIN)/pip check
	@touch $@

.PHONY: packages
packages:
	@echo "installing a C compiler and Python's venv (Debian packages)"
	$(SUDO) apt-get update -qq
	$(SUDO) apt-get install -y -qq build-essential python3 python3-venv

.PHONY: browser
browser: ## Install headless Chromium and its driver, for the tests of the console, where they are missing
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { echo "installing Chromium and its driver (Debian packages)" && \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq chromium chromium-driver fonts-liberation; }

.PHONY: clean
clean: ## Remove everything that was built or installed here
	rm -rf target .aws-sam $(VENV) $(TOOLS) functions/*/target
