# make demo, make lint, make test, make test-all: each does all the set-up, into .venv. A second call reuses it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup lint demo test test-all test-long mistakes mutants gpu site wheels fuzz

setup: .venv/.ready

.venv/.ready: setup.py .ci/system_libraries $(wildcard vitkd_ds/data/beton/csrc/*)
	PYTHON=$(PYTHON) sh .ci/system_libraries
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	@# torch first: deepspeed's and ffcv's setup.py look at it; no build isolation, so that they look at this one.
	@# DS_IGNORE_CUDA_DETECTION: beside a GPU deepspeed would ask for the CUDA toolkit, which nothing here needs.
	$(BIN)/python -m pip install --quiet torch
	DS_BUILD_OPS=0 DS_IGNORE_CUDA_DETECTION=1 $(BIN)/python -m pip install --quiet --no-build-isolation \
	    --config-settings editable_mode=compat --editable ".[test]"
	@# By itself, as it asks for an older Pillow: vitkd_ds/config/check.py.
	$(BIN)/python -m pip install --quiet --no-deps 'trackio>=0.43,<0.44'
	touch $@

# The two runs are made anew, in a folder of their own. PATH: deepspeed starts the python that it finds there.
DEMO := deepspeed --quiet train.py --ds_config ds_configs/zero2.json

demo: setup
	rm -rf runs/make_demo
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEMO) --recipe demo_plain --workdir runs/make_demo/plain
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEMO) --workdir runs/make_demo/distilled
	$(BIN)/vitkd-ds compare runs/make_demo/plain runs/make_demo/distilled
	@echo
	@echo "the report, for a browser:"
	@$(BIN)/vitkd-ds report runs/make_demo/distilled runs/make_demo/plain

# Style and types; then the size of the package and of its tests, which nothing checks.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(BIN)/python
	@for folder in vitkd_ds tests; do echo "$$folder: $$(find $$folder -name '*.py' -exec cat {} + | wc -l) lines of Python"; done

# The tests of slurm/ start a real Slurm. Where it cannot be installed they are skipped, and the summary says so.
# On two workers, each with one thread; PYTEST_WORKERS=0 runs all tests in one process.
PYTEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

test: setup
	$(PYTEST) -m "not slow and not long"

test-all: setup
	sh .ci/test_programs
	$(PYTEST) -m "not long" --hypothesis-profile many

# A cut network, dead daemons of Slurm, kills, every recipe at its full depth, `make gpu` at toy size: minutes each.
test-long: setup
	sh .ci/test_programs
	$(BIN)/python -m pytest -m long

# Deliberate mistakes, one at a time in a copy of the tree: a test must fail on each. MISTAKES: words that choose some.
mistakes: setup
	$(BIN)/python -m tests.mistakes $(MISTAKES)

# N random mutants of the package, drawn with SEED. FILES: words that choose some files, such as data/ or lock.
N ?= 100
SEED ?= 0

mutants: setup
	$(BIN)/python -m tests.mutants --num $(N) --seed $(SEED) -- $(FILES)

# On a machine with a GPU: does it compute what a CPU does, and how fast? 25 minutes at most; rows in gpu/rows.json.
gpu: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/gpu.py

# The pages and the reference as a site: build/site/index.html opens from the disk.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# For nodes without a compiler or root: dist/*.whl carry their C++ libraries. docs/install.md says how to install them.
wheels: setup
	sh .ci/wheels "$(CURDIR)/$(BIN)/python" dist

# Damaged JPEGs, tables, rows and any plans thrown at the C++ code, under the sanitizers. FUZZ_PHOTOS: JPEGs of your own.
FUZZ_SECONDS ?= 600

fuzz: setup
	$(BIN)/python fuzz/corpus.py build/fuzz/corpus $(FUZZ_PHOTOS)
	for name in decode augment; do $(CXX) -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all \
	    -o build/fuzz/$${name}_fuzz fuzz/$${name}_fuzz.cpp vitkd_ds/data/beton/csrc/*.cpp -ljpeg -lz -pthread || exit; done
	build/fuzz/augment_fuzz
	build/fuzz/decode_fuzz build/fuzz/corpus --seconds $(FUZZ_SECONDS)
