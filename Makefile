# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
#
#   make demo    train a small transformer with LAMB and with AdamW
#   make test    lint, then the tests
#   make bench   the benchmarks
#
# Each works alone on a fresh clone: it makes .venv, installs the pinned requirements and builds.
# ARGS goes to the program that runs: make test ARGS="-k lamb", make demo ARGS="--steps 50".
# What the build reads from the environment (LARGEBATCH_CUDA and others) is in the README.

PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc -name '*.[hc]*' -o -name '*.inl')
# Directories too: a file that goes away changes nothing else.
SOURCES := setup.py pyproject.toml CMakeLists.txt $(CPP) $(shell find csrc python \
  \( -name '.*' -o -name __pycache__ \) -prune -o \( -type d -o -name '*.py' \) -print)

# Two stamps: a build with warnings as errors also serves those who do not ask for it.
STRICT := .venv/.installed-strict
INSTALLED := $(if $(filter true,$(CI)),$(STRICT),.venv/.installed)

.PHONY: demo test bench lint clean
.NOTPARALLEL:

demo: $(INSTALLED)
	$(BIN)/largebatch demo $(ARGS)

test: lint $(STRICT)
	$(BIN)/pytest -q tests $(ARGS)

bench: $(INSTALLED)
	$(BIN)/pytest bench $(ARGS)

lint: .venv/.requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)

.venv/.requirements: requirements/dev.txt requirements/peers.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements/dev.txt
	$(BIN)/python -m pip install --no-deps -r requirements/peers.txt
	touch $@

$(STRICT): export LARGEBATCH_WERROR = 1
$(STRICT) .venv/.installed: .venv/.requirements $(SOURCES)
	rm -rf build/lib* build/bdist*  # or modules deleted since would be packed again
	$(BIN)/python -m pip install --no-deps --force-reinstall .
	touch $@ .venv/.installed

clean:
	rm -rf build .venv
