# One command a task. Everything runs in a virtual environment, which is made once and remade when what it is built from
# changes: .venv, or .venv-3.13 where .venv has another Python than PYTHON=python3.13.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
JOBS ?= 2
# Major and minor version of PYTHON, and of the Python that made .venv; empty where there is none.
ASKED := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
MADE := $(shell sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2>/dev/null)
# Without PYTHON=, an environment that is there is taken as it is.
ifeq ($(origin PYTHON),file)
VENV := .venv
VERSION := $(or $(MADE),$(ASKED))
else
VENV := $(if $(filter-out $(ASKED),$(MADE)),.venv-$(ASKED),.venv)
VERSION := $(ASKED)
endif
# The newest packages have left Python 3.11 behind, so each Python has one set of versions.
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints.txt,constraints-newest.txt)
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
TOOLS := $(VENV)/.tools-stamp
# A file's tests share what it makes. Files go out in the order of tests/conftest.py, the longest first.
WORKERS := -n $(JOBS) --dist loadfile --no-loadscope-reorder
CPP_SOURCES := $(shell find cpp -type f)
# The virtual environment's tools come first, so that cmake and ninja have the pinned versions.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Images of containers often forbid bytecode, and every command of hundreds would then compile all modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv build-tools demo docs docs-venv test test-newest test-gpu test-all properties lint bench sanitize fuzz clean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv: download the pinned packages, compile the C++ core

build-tools: $(TOOLS)

define require_compiler
@command -v $(firstword $(CXX)) >/dev/null || { echo "CXX=$(CXX) is not a C++ compiler on PATH; install g++ or clang, or name one: make venv CXX=clang++" >&2; exit 1; }
endef

# What compiles the core: the sanitizers need no more.
$(TOOLS): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "PYTHON=$(PYTHON) is not on PATH; name one: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"PYTHON=$(PYTHON) is Python {sys.version.split()[0]}; PIT needs 3.11 or newer: make venv PYTHON=/path/to/python3.11")'
	@$(PYTHON) -c 'import os, sys, sysconfig as s; os.path.exists(os.path.join(s.get_path("include"), "Python.h")) or sys.exit("PYTHON=$(PYTHON) has no C headers (Python.h); install the python3-dev package that belongs to it")'
	$(require_compiler)
	@if [ -x $(BIN)/python ]; then echo "venv 1/3: $(VENV) exists and is reused"; else echo "venv 1/3: creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); fi
	@echo "venv 2/3: what compiles the C++ core (downloads about 162 MB the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) scikit-build-core pybind11 cmake ninja jaxlib
	@touch $@

$(STAMP): $(TOOLS) pyproject.toml $(CONSTRAINTS) CMakeLists.txt $(CPP_SOURCES)
	$(require_compiler)
	@echo "venv 3/3: PIT with its dependencies (downloads about 405 MB the first time), then compiling the C++ core"
	@CXX="$(CXX)" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c $(CONSTRAINTS) -e '.[test,dev]'
	@touch $@
	@echo "venv: ready"

demo: $(STAMP)  ## run the whole method on a small synthetic task; results go to runs/demo
	$(BIN)/pit run demo --out runs/demo

TESTS ?=

test: $(STAMP)  ## run the fast tests (TESTS="tests/kernels tests/model": only these; PYTHON=python3.13: on the newest JAX)
	@echo "test: all but the tests marked slow (those are part of make test-all)"
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) $(TESTS)

# What JAX, Flax, Optax, Orbax and Grain change shows in these.
NEWEST ?= python3.13 python3.12
NEWEST_TESTS := tests/kernels tests/model tests/losses tests/train tests/rollout tests/rl tests/data/test_prefetch.py

test-newest:  ## run the tests that a new JAX may break, with python3.13 or 3.12 and constraints-newest.txt
	@for python in $(NEWEST); do \
	  if $$python -c '' 2>/dev/null; then exec $(MAKE) test PYTHON=$$python TESTS="$(NEWEST_TESTS)"; fi; \
	done; echo "none of $(NEWEST) runs; name one: make test-newest NEWEST=/path/to/python3.13" >&2; exit 1

# The site has a stamp of its own, so that make test downloads none of it.
docs: $(VENV)/.docs-stamp  ## build the site into build/docs, warnings as errors; notebooks run unless their outputs are kept
	@echo "docs: notebooks run for minutes where a source has changed since (PIT_NOTEBOOKS=off: show them without outputs)"
	@JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs $(JOBS) --conf-dir docs . build/docs
	@echo "docs: open build/docs/index.html"

docs-venv: $(VENV)/.docs-stamp

$(VENV)/.docs-stamp: $(STAMP)
	@echo "docs: Sphinx, its theme and Jupyter's kernel (downloads about 41 MB the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

# Apart from .venv: where JAX finds a CUDA plugin, it looks for a GPU in every command.
GPU_TEST := $(CURDIR)/build/gpu-test$(VENV:.venv%=%)

test-gpu: $(STAMP) $(GPU_TEST)/.stamp  ## interpret and compile the GPU kernels, without a GPU (downloads 470 MB the first time)
	@echo "test-gpu 1/2: in Triton's interpreter, float32 and float16"
	PYTHONPATH=$(GPU_TEST) TRITON_INTERPRET=1 $(BIN)/python -m pytest $(WORKERS) tests/kernels/test_triton_interpreted.py
	@echo "test-gpu 2/2: lowered and assembled for sm_80, sm_90 and sm_100"
	PYTHONPATH=$(GPU_TEST) $(BIN)/python -m pytest $(WORKERS) tests/kernels/test_triton_compiled.py

$(GPU_TEST)/.stamp: $(CONSTRAINTS)
	@echo "test-gpu: installing Triton into build/gpu-test (1.5 GB on disk)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade -c $(CONSTRAINTS) --target $(GPU_TEST) triton jax-triton jax-cuda12-plugin jax-cuda12-pjrt
	@touch $@

test-all: $(STAMP)  ## run every test, the slow ones too
	$(BIN)/python -m pytest $(WORKERS) --timeout=7200

TIMES ?= 20

properties: $(STAMP)  ## test properties on 20 times as many examples (TIMES=N: N times), where they fix no number: most on 2000
	PIT_EXAMPLES_TIMES=$(TIMES) $(BIN)/python -m pytest -m hypothesis $(WORKERS) --timeout=7200

lint: $(STAMP)  ## check style, types, layers and the extensions' stubs
	@echo "lint 1/6: ruff check"
	@$(BIN)/ruff check .
	@echo "lint 2/6: ruff format"
	@$(BIN)/ruff format --check .
	@echo "lint 3/6: mypy --strict"
	@$(BIN)/mypy --strict
	@echo "lint 4/6: import layers"
	@$(BIN)/lint-imports
	@echo "lint 5/6: clang-format"
	@$(BIN)/clang-format --dry-run -Werror $(filter %.hpp %.cpp %.inl,$(CPP_SOURCES))
	@echo "lint 6/6: the stubs of the extension modules against them"
	@$(BIN)/python -m mypy.stubtest pit.data._core pit_kernels._native --mypy-config-file cpp/bindings/stubtest.ini --allowlist cpp/bindings/stubtest_allowlist.txt

bench: $(STAMP)  ## run every scenario of bench/ at a small size, a line each (full size: python bench/NAME.py --full)
	@failed=0; log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	for scenario in $(filter-out bench/_% bench/study_%,$(wildcard bench/*.py)); do \
	  if output=$$($(BIN)/python $$scenario 2>$$log); then echo "bench: $$scenario: $${output##*$$'\n'}"; \
	  else cat $$log; echo "bench: $$scenario: failed"; failed=1; fi; \
	done; exit $$failed

sanitize: $(TOOLS)  ## run the C++ tests with address and undefined-behaviour sanitizers, those of threads with the thread sanitizer
	@echo "sanitize 1/2: address, undefined behaviour; building in build/sanitize"
	@cmake -S . -B build/sanitize -G Ninja -DPIT_BUILD_TESTS=ON -DPIT_SANITIZE=address,undefined >/dev/null
	@cmake --build build/sanitize --parallel $(JOBS)
	@ctest --test-dir build/sanitize --parallel $(JOBS) --output-on-failure
	@echo "sanitize 2/2: threads; building in build/sanitize-thread"
	@cmake -S . -B build/sanitize-thread -G Ninja -DPIT_BUILD_TESTS=ON -DPIT_SANITIZE=thread >/dev/null
	@cmake --build build/sanitize-thread --parallel $(JOBS) --target test_threads test_store test_attention
	@ctest --test-dir build/sanitize-thread --tests-regex 'test_(threads|store|attention)' --output-on-failure

FUZZ_INPUTS ?= 1000000
VALIDATORS := store/arrow store/token_table support/state curriculum/curriculum curriculum/feedback packing/planner

fuzz: $(STAMP)  ## feed a million damaged stores and states each to their readers, sanitized; report the lines they reached
	@echo "fuzz 1/2: $(FUZZ_INPUTS) inputs each under the sanitizers of make sanitize"
	@cmake -S . -B build/sanitize -G Ninja -DPIT_BUILD_TESTS=ON -DPIT_SANITIZE=address,undefined >/dev/null
	@cmake --build build/sanitize --parallel $(JOBS) --target fuzz_state fuzz_store
	@build/sanitize/fuzz_state $(FUZZ_INPUTS)
	@build/sanitize/fuzz_store $(FUZZ_INPUTS)
	@echo "fuzz 2/2: lines of the validators that 100000 inputs reach"
	@cmake -S . -B build/coverage -G Ninja -DPIT_BUILD_TESTS=ON -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=--coverage >/dev/null
	@cmake --build build/coverage --parallel $(JOBS) --target fuzz_state fuzz_store
	@build/coverage/fuzz_state 100000 >/dev/null && build/coverage/fuzz_store 100000 >/dev/null
	@gcov --no-output $(VALIDATORS:%=build/coverage/CMakeFiles/pit_core.dir/cpp/src/%.cpp.gcda) | grep -A1 "cpp/src/" | grep -v "^--"

clean:  ## remove the environment, the builds and the caches; runs/ stays
	rm -rf .venv .venv-* build dist docs/reference/api .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
