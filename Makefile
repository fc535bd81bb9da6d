# pg_crm_sync: what a person types. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PG_CONFIG ?=

.PHONY: help setup demo demo-stop test sim bench lint install uninstall clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  Variables: PG_CONFIG (installation to build for and install into), CARGO_TARGET_DIR, PROFILE (install: release or dev)"

setup: ## install what is missing on Debian 12 (packages, Rust), saying what it does
	@scripts/setup

demo: setup ## see it work: a real PostgreSQL, both CRMs emulated, under a minute after the build
	@scripts/demo

demo-stop: ## stop what `make demo` left running and delete it
	@scripts/demo-stop

test: setup ## every test: core, emulators, third-party clients, PostgreSQL 15, smoke on 16, 17 and 18
	@scripts/test

sim: ## simulate histories of edits, faults and decisions; SEED=, HISTORIES=, DURATION= (seconds): the first limit stops
	@scripts/sim

bench: setup ## measure; one table, also in target/bench.json
	@benches/run

lint: ## format, clippy with warnings as errors, documentation
	@scripts/lint

install: ## build and install into the installation of PG_CONFIG (default Debian's PostgreSQL 15)
	@scripts/install-extension

uninstall: ## remove the installed files again
	@scripts/install-extension --remove

clean: demo-stop ## delete what was built
	@cargo clean
