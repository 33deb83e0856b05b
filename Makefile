# make demo, make lint, make test, make test-all: the first call sets up .venv, later calls reuse it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup lint demo test test-all test-long test-torch mistakes mutants gpu gpu-kit site wheels fuzz

setup: .venv/.ready

.venv/.ready: setup.py .ci/system_libraries $(wildcard vitkd_ds/data/beton/csrc/*)
	PYTHON=$(PYTHON) sh .ci/system_libraries
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	@# torch first: the setup.py of deepspeed and ffcv import it. Without build isolation they import this one.
	@# DS_IGNORE_CUDA_DETECTION: with a GPU, deepspeed would require the CUDA toolkit, which is not needed.
	$(BIN)/python -m pip install --quiet torch
	DS_BUILD_OPS=0 DS_IGNORE_CUDA_DETECTION=1 $(BIN)/python -m pip install --quiet --no-build-isolation \
	    --editable ".[test]"
	@# Without its dependencies, because it requires an older Pillow (see vitkd_ds/config/check.py).
	$(BIN)/python -m pip install --quiet --no-deps 'trackio>=0.43,<0.44'
	touch $@

# Deletes earlier demo runs and trains both again. PATH: deepspeed starts the first python in it.
DEMO := deepspeed --quiet train.py --ds_config ds_configs/zero2.json

demo: setup
	rm -rf runs/make_demo
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEMO) --recipe demo_plain --workdir runs/make_demo/plain
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEMO) --workdir runs/make_demo/distilled
	$(BIN)/vitkd-ds compare runs/make_demo/plain runs/make_demo/distilled
	@echo
	@echo "report (open it in a browser):"
	@$(BIN)/vitkd-ds report runs/make_demo/distilled runs/make_demo/plain

# Check style and types; then print the size of the package and of its tests.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(BIN)/python
	@for folder in vitkd_ds tests; do echo "$$folder: $$(find $$folder -name '*.py' -exec cat {} + | wc -l) lines of Python"; done

# Tests of slurm/ start a real Slurm cluster. If Slurm cannot be installed, they are skipped, and the summary says so.
# Two workers with one thread each; PYTEST_WORKERS=0 runs all tests in one process.
PYTEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

test: setup
	$(PYTEST) -m "not slow and not long"

test-all: setup
	sh .ci/test_programs
	$(PYTEST) -m "not long" --hypothesis-profile many

# Tests that take minutes each: cut networks, dead Slurm daemons, kills, every recipe at full depth, `make gpu` at toy size.
test-long: setup
	sh .ci/test_programs
	$(BIN)/python -m pytest -m long

# Run the fast tests of engine, models and losses with another release of torch, such as TORCH=2.11, installed from PyPI.
# All other packages are those of .venv. tests/releases.py lists the tests that cannot pass with a release.
test-torch: setup
	@test -n "$(TORCH)" || { echo "error: pass a release, such as make test-torch TORCH=2.11" >&2; exit 1; }
	.ci/torch_release $(BIN)/python $(TORCH)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv-torch-$(TORCH)/bin/python -m pytest -n $(PYTEST_WORKERS) \
	    --dist loadfile -m "not slow and not long" tests/engine tests/models tests/losses

# Put deliberate mistakes into a copy of the tree, one at a time; a test must fail on each. MISTAKES: words to select some.
mistakes: setup
	$(BIN)/python -m tests.mistakes $(MISTAKES)

# Test N random mutants of the package, drawn with SEED. FILES: words to select files, such as data/ or lock.
N ?= 100
SEED ?= 0

mutants: setup
	$(BIN)/python -m tests.mutants --num $(N) --seed $(SEED) -- $(FILES)

# Check correctness and speed on a GPU: at most 25 minutes; results in gpu/rows.json.
gpu: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/gpu.py

# Collect in build/gpu-kit what a machine with a GPU, but without a network, needs for `make gpu`. See docs/install.md.
gpu-kit: setup
	.ci/gpu_kit $(BIN)/python build/gpu-kit

# Build the documentation site; open build/site/index.html in a browser.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# Build wheels with their C++ libraries in dist/, for nodes without a compiler or root. See docs/install.md.
wheels: setup
	sh .ci/wheels "$(CURDIR)/$(BIN)/python" dist

# Fuzz the C++ code under sanitizers: damaged JPEGs, tables and crops, random augmentation plans. FUZZ_PHOTOS: more JPEGs.
FUZZ_SECONDS ?= 600

fuzz: setup
	$(BIN)/python fuzz/corpus.py build/fuzz/corpus $(FUZZ_PHOTOS)
	for name in decode augment; do $(CXX) -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all \
	    -o build/fuzz/$${name}_fuzz fuzz/$${name}_fuzz.cpp vitkd_ds/data/beton/csrc/*.cpp -ljpeg -lz -pthread || exit; done
	build/fuzz/augment_fuzz
	build/fuzz/decode_fuzz build/fuzz/corpus --seconds $(FUZZ_SECONDS)
