# RustyOnions: the two commands are `make run` and `make test`. Everything they need they install themselves.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= etc/micronode.toml
export RON_HOME ?= $(CURDIR)/var

.PHONY: help run test test-long lint format bench fuzz docs deb test-deb clean

help:
	@echo "make run     a Micronode on its own private Tor network (Ctrl-C stops it)"
	@echo "make test    every test, with real tor and real Chromium"
	@echo "make test-long  faults, partitions, clocks, amnesia, several hosts: three quarters of an hour"
	@echo "make lint    ruff, mypy, import contracts, docs"
	@echo "make bench   the benchmarks; results in bench/results/"
	@echo "make fuzz    the fuzz targets, ten minutes each"
	@echo "make deb     the Debian package, into dist/"
	@echo "make test-deb  the package in containers: installed, upgraded, purged (root; ten to twenty minutes)"
	@echo "make format  rewrite the code in the house style"
	@echo "make clean   remove the venv and what tests left (not var/)"

run:
	@scripts/setup run
	@$(BIN)/ronctl pack build --if-missing
	@exec $(BIN)/twistd --pidfile= -n ron-node --config $(CONFIG)

test:
	@scripts/setup test
	@scripts/run-tests

test-long:
	@scripts/setup test
	@scripts/run-tests --long

lint:
	@scripts/setup lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/vendor-assets --check
	scripts/check-docs

format:
	@scripts/setup lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench:
	@scripts/setup bench
	$(BIN)/python -m bench

fuzz:
	@scripts/setup test
	scripts/fuzz --seconds 600

deb:
	scripts/build-deb

test-deb:
	scripts/test-deb

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .coverage* .mypy_cache .ruff_cache .hypothesis .import_linter_cache
