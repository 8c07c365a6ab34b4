# A fresh machine needs Python >= 3.10 (with venv), a C++ compiler and make.
#
#   make demo       set up .venv, separate a joint phantom, say where the pictures are
#   make test       the same set-up, then every Python and C++ test
#   make lint       ruff, mypy, import rules, clang-tidy
#   make sanitize   C++ tests and op tests under AddressSanitizer and UBSan
#   make fuzz MINUTES=30   damaged files of every format, through Python and, sanitized, the C++ runner
#   make emulate    run the CUDA kernels on the CPU: their tests through torch, with no GPU
#   make cuda       compile and link the CUDA kernels for every architecture (needs nvcc, no GPU);
#                   CUDA_ARCHS='8.7;9.0' for some
#   make docs       the documentation as a site, build/docs/index.html; warnings are errors
#   make wheels     a wheel for each Python of this machine and the sdist, in dist/, checked and tried
#                   (needs PyPI); WHEEL_PYTHONS='python3.12' for some, WHEEL_TORCHES='2.13.0'
#   make test-aarch64   cross-build the aarch64 wheel, the runner and the C++ tests, and run them by qemu
#   make aarch64-ops    compile and link the torch and CUDA ops for a Jetson (8.7, 11.0); they are not run
#   make bench      every benchmark of benchmarks/
#   make clean      remove what was built; make distclean: .venv too
#
# An environment of your own, with its torch: make demo VENV=$VIRTUAL_ENV

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
PYTEST_ARGS ?=
CUDA_ARCHS ?= all
WHEEL_PYTHONS ?=
AARCH64 := build/aarch64
# The torch ops of the wheel are tested under these: the oldest that they take, and the newest.
WHEEL_TORCHES ?= 2.11.0 newest
# pytest's processes. Each file's tests stay in one: they share what is slow to make.
TEST_PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/.blsgan
SANITIZERS := address,undefined

# The build reads these from the environment: CXX, CXXFLAGS, MAX_JOBS, BLSGAN_CUDA, BLSGAN_TORCH
# and the others that CONTRIBUTING.md lists.
build_inputs := pyproject.toml setup.py $(wildcard build_backend/blsgan_build/*.py) \
    $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

.PHONY: all demo test setup lint lint-python lint-cpp sanitize sanitize-build sanitize-cpp sanitize-ops fuzz emulate emulate-build \
    cuda wheels test-aarch64 aarch64-ops docs bench cmake ctest clean distclean
.DELETE_ON_ERROR:

all: setup

demo: $(STAMPS)/installed
	$(BIN)/blsgan demo -o $(OUT)

test: setup cmake
	BLSGAN_INFER=$(abspath build/cmake/blsgan-infer) $(pytest) --dist loadfile $(PYTEST_ARGS)
	@$(run_ctest)

# Threads that wait for each other give way: another process has work for the core.
pytest = OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(TEST_PROCESSES)

setup: $(STAMPS)/test-tools

ctest: cmake
	@$(run_ctest)

run_ctest = PATH="$(abspath $(BIN)):$$PATH" \
    ctest --test-dir build/cmake --output-on-failure --no-tests=error

cmake: $(STAMPS)/test-tools
	@PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/cmake -G Ninja >build/cmake.log 2>&1 \
	    || { cat build/cmake.log; exit 1; }
	@PATH="$(abspath $(BIN)):$$PATH" cmake --build build/cmake

# ---- set-up: each step leaves a stamp, so that a second run starts at once ----

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "blsgan needs Python 3.10 or newer, and $(PYTHON) is %s: make PYTHON=python3.11" \
	    % sys.version.split()[0])'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv
	@$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
	    || $(BIN)/pip install "$$(PYTHONPATH=build_backend $(PY) -c \
	        'from blsgan_build.torch_source import TORCH_REQUIREMENT as r; print(r)')"
	@touch $@

$(STAMPS)/build-tools: $(STAMPS)/torch
	$(BIN)/pip install 'setuptools>=77' 'pybind11>=2.13' wheel
	@touch $@

# pip says nothing while it compiles, and drops the log of a build that succeeds.
$(STAMPS)/installed: $(STAMPS)/build-tools $(build_inputs)
	@mkdir -p build
	$(BIN)/pip install --no-build-isolation --editable .
	@touch $@

$(STAMPS)/test-tools: $(STAMPS)/installed pyproject.toml
	$(BIN)/pip install $(call extra,test)
	@case "$$(uname -sm)" in \
	    "Linux x86_64") $(BIN)/pip install $(call extra,tensorrt-rtx) \
	        || echo "NOT CHECKED: no TensorRT-RTX to be had, so no engines are built";; \
	    *) echo "no TensorRT-RTX for $$(uname -sm): the tests that build engines are skipped";; \
	esac
	@touch $@

$(STAMPS)/lint-tools: $(STAMPS)/test-tools pyproject.toml
	$(BIN)/pip install $(call extra,lint)
	@touch $@

$(STAMPS)/docs-tools: $(STAMPS)/test-tools pyproject.toml
	$(BIN)/pip install $(call extra,docs)
	@touch $@

# The packages of one extra, from the installed metadata: installing '.[extra]' would build again.
extra = $$($(PY) build_backend/blsgan_build/extra.py $(1))

# ---- checks ----

lint: lint-python lint-cpp

lint-python: $(STAMPS)/lint-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-cpp: $(STAMPS)/lint-tools
	@PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/cmake -G Ninja >build/cmake.log 2>&1 \
	    || { cat build/cmake.log; exit 1; }
	@echo "clang-tidy, file by file"
	@printf '%s\n' $(filter-out %/onnxruntime_check.cpp,$(wildcard csrc/cpu/*.cpp csrc/joint/*.cpp csrc/runner/*.cpp csrc/tests/*.cpp)) \
	    | xargs -n 1 -P $$(nproc) $(BIN)/clang-tidy --quiet -p build/cmake

sanitize: sanitize-cpp sanitize-ops

sanitize-build: $(STAMPS)/test-tools
	@PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/sanitize -G Ninja \
	    -DBLSGAN_SANITIZE=$(SANITIZERS) >build/sanitize.log 2>&1 || { cat build/sanitize.log; exit 1; }
	@PATH="$(abspath $(BIN)):$$PATH" cmake --build build/sanitize $(SANITIZED_TARGETS)

sanitize-cpp: sanitize-build
	@PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/sanitize --output-on-failure --no-tests=error

# A failure prints its seed and case; the files are kept in build/fuzz. One sixth of the time is C++'s.
FUZZ_SEED ?= $(shell date +%s)
MINUTES ?= 30
fuzz: SANITIZED_TARGETS := --target test_fuzz
fuzz: sanitize-build
	@build/sanitize/test_fuzz $$(($(MINUTES) * 10)) $(FUZZ_SEED)
	@OMP_NUM_THREADS=1 $(PY) tests/test_fuzz.py --seconds $$(($(MINUTES) * 50)) --seed $(FUZZ_SEED)

# Python itself is not instrumented, so the runtimes are preloaded; it never frees everything at
# exit, so leaks are not looked for here. The first command makes sure that what is tested is
# the sanitized build and not the installed one.
sanitized = LD_PRELOAD="$$(for l in asan ubsan stdc++; do $${CXX:-g++} -print-file-name=lib$$l.so; done | xargs)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    PYTHONPATH=$(abspath build/sanitize-py/lib)

sanitize-ops: $(STAMPS)/test-tools
	BLSGAN_CUDA=0 BLSGAN_SANITIZE=$(SANITIZERS) \
	    $(PY) setup.py --quiet build --build-base build/sanitize-py --build-lib build/sanitize-py/lib
	@cd / && $(sanitized) $(abspath $(PY)) -c \
	    'from blsgan.ops import native as n; assert n.build_info()["sanitize"] == "$(SANITIZERS)"'
	$(sanitized) $(pytest) -p no:cacheprovider -m "not slow and not gpu" tests/ops tests/joint

# The ops' own tests with csrc/cuda in the place of csrc/cpu, thread by thread, every access checked.
# Memory and threads that those kernels do not have are left out.
EMULATED := build/emulated/lib
emulated = PYTHONPATH=$(abspath $(EMULATED)) $(pytest) -p no:cacheprovider -m "not slow and not gpu"
emulate-build: cmake
	BLSGAN_CUDA=0 BLSGAN_EMULATOR=$(abspath build/cmake/csrc/tests/cuda_emulator/libblsgan_emulated.so) \
	    $(PY) setup.py --quiet build --build-base build/emulated --build-lib $(EMULATED)
	@cd / && PYTHONPATH=$(abspath $(EMULATED)) $(abspath $(PY)) -c \
	    'from blsgan.ops.fused._library import build_info as b; assert b()["cuda"] == "emulated"'
emulate: emulate-build
	$(emulated) tests/ops/test_every_op.py tests/ops/test_traps.py
	$(PY) benchmarks/gpu_check.py --emulated
	$(PY) csrc/tests/cuda_emulator/mutants.py

cuda: $(STAMPS)/test-tools
	@if command -v nvcc >/dev/null || test -x "$${CUDA_HOME:-/none}/bin/nvcc"; then \
	    set -e; \
	    export BLSGAN_CUDA_ARCHS='$(CUDA_ARCHS)'; \
	    BLSGAN_CUDA=1 \
	        $(PY) setup.py --quiet build --build-base build/cuda --build-lib build/cuda/lib; \
	    $(BIN)/pip install --quiet nvidia-cuda-cuobjdump || echo "make cuda: no cuobjdump to be had"; \
	    BLSGAN_CUDA_LIBRARY=build/cuda/lib/blsgan/_ops.so \
	        $(BIN)/pytest -p no:cacheprovider tests/packaging/test_cuda_library.py; \
	else \
	    echo "make cuda: NOT CHECKED, the CUDA kernels were not compiled: no nvcc on PATH or in CUDA_HOME"; \
	fi

wheels: $(STAMPS)/test-tools
	$(BIN)/pip install --quiet $(call extra,wheels)
	PYTHONPATH=build_backend $(PY) -m blsgan_build.wheels -o dist $(WHEEL_PYTHONS)
	BLSGAN_WHEELS=dist BLSGAN_WHEEL_PYTHONS='$(WHEEL_PYTHONS)' \
	    BLSGAN_WHEEL_TORCHES='$(WHEEL_TORCHES)' \
	    $(BIN)/pytest -p no:cacheprovider tests/packaging/test_wheels.py

docs: $(STAMPS)/docs-tools
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

# Debian's packages and qemu are kept in the folder; status 3: something cannot be had, and it said so.
test-aarch64: $(STAMPS)/test-tools
	@$(BIN)/pip install --quiet $(call extra,wheels)
	@set -e; status=0; \
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=build_backend \
	    $(PY) -m blsgan_build.aarch64 $(AARCH64) || status=$$?; \
	case $$status in \
	    0) BLSGAN_AARCH64=$(AARCH64) $(pytest) -p no:cacheprovider tests/packaging/test_aarch64.py;; \
	    3) ;; \
	    *) exit $$status;; \
	esac

# Not in .ci/run: torch for aarch64 is a download of 430 MB, which the folder keeps.
AARCH64_OPS := build/aarch64-ops
aarch64-ops: $(STAMPS)/test-tools
	@$(BIN)/pip install --quiet nvidia-cuda-cuobjdump || echo "$@: no cuobjdump to be had"
	@set -e; status=0; \
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=build_backend \
	    $(PY) -m blsgan_build.aarch64_ops $(AARCH64_OPS) || status=$$?; \
	case $$status in \
	    0) BLSGAN_CUDA_LIBRARY=$(AARCH64_OPS)/lib/blsgan/_ops.so BLSGAN_CUDA_MACHINE=aarch64 \
	        BLSGAN_CUDA_ARCHS='8.7;11.0' \
	        $(BIN)/pytest -p no:cacheprovider tests/packaging/test_cuda_library.py;; \
	    3) ;; \
	    *) exit $$status;; \
	esac

bench: setup
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(PY) $$script; done

clean:
	rm -rf build dist *.egg-info blsgan/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache $(STAMPS)/installed
	find blsgan tests benchmarks build_backend -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf .venv
