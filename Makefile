# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
#
#   make demo    train a small transformer with LAMB and with AdamW
#   make test    lint, then the tests; the CUDA kernels run on the CPU (docs/simt.md)
#   make bench   the benchmarks, quickly (docs/performance.md): build/bench.html, build/bench.json
#   make gpu     tests and benchmarks on this machine's GPU (docs/gpu.md)
#
# Each works alone on a fresh clone: it makes .venv, installs the pinned requirements and builds;
# but gpu uses and builds into the environment of $(PYTHON), and asks nothing of the network.
# ARGS goes to the program that runs: make test ARGS="-k lamb", make demo ARGS="--steps 50".
# What the build reads from the environment (LARGEBATCH_CUDA and others) is in the README.

PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc -name '*.[hc]*' -o -name '*.inl')
SIMT := $(wildcard $(foreach kind,h cpp cu cuh,tests/simt/*/*.$(kind)))
# Directories too: a file that goes away changes nothing else.
SOURCES := setup.py pyproject.toml CMakeLists.txt $(CPP) $(shell find csrc python \
  \( -name '.*' -o -name __pycache__ \) -prune -o \( -type d -o -name '*.py' -o -name '*.html' \) -print)

# Two stamps: a build with warnings as errors also serves those who do not ask for it.
STRICT := .venv/.installed-strict
INSTALLED := $(if $(filter true,$(CI)),$(STRICT),.venv/.installed)

# The tests of the simulator itself, without the look back at which kernels have run.
OF_SIMT := $(filter-out %/test_coverage.py,$(wildcard tests/simt/test_*.py))

.PHONY: demo test test-cpu test-simt browser bench gpu lint clean
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif

demo: $(INSTALLED)
	$(BIN)/largebatch demo $(ARGS)

test: export LARGEBATCH_WERROR = 1
test: lint $(STRICT) $(if $(filter true,$(CI)),browser)
	$(BIN)/python -m tests.simt.build
ifdef ARGS
	$(BIN)/pytest -q tests $(ARGS)
else
	$(MAKE) -j2 SIDE_BY_SIDE=1 test-cpu test-simt
endif

# One thread each: tests of threads ask for them.
test-cpu test-simt: export OMP_NUM_THREADS = 1
test-cpu:
	$(BIN)/pytest -q tests --no-backend simt

test-simt: export LARGEBATCH_SIMT_RACECHECK = 1
test-simt: export LARGEBATCH_SIMT_SEED = 1
test-simt:
	@echo "The tests of the CUDA kernels run beside these; their report comes last."
	@$(BIN)/pytest -q tests --backend simt -k simt \
	  $(foreach path,tests/gpu $(OF_SIMT),--ignore $(path)) >build/simt.log 2>&1; \
	  passed=$$?; cat build/simt.log; exit $$passed

# One test looks at a page in a browser. Who has none need not have one; CI gets one if it can.
browser:
	-@for name in chromium chromium-browser google-chrome; do \
	  command -v $$name >/dev/null && exit; \
	done; apt-get -qq update && apt-get -qq install --no-install-recommends chromium >/dev/null

bench: $(INSTALLED)
	$(BIN)/largebatch bench --suite bench --json build/bench.json --html build/bench.html $(ARGS)

gpu:
	$(PYTHON) -m tests.gpu $(ARGS)

lint: .venv/.requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(SIMT)

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
