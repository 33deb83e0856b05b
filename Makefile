# make demo, make test, make test-all: each does all the set-up, into .venv. A second call reuses it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all gpu wheels fuzz

setup: .venv/.ready

.venv/.ready: setup.py .ci/system_libraries $(wildcard vitkd_ds/data/beton/csrc/*)
	PYTHON=$(PYTHON) sh .ci/system_libraries
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	@# torch first: deepspeed's and ffcv's setup.py look at it; no build isolation, so that they look at this one.
	@# DS_IGNORE_CUDA_DETECTION: beside a GPU deepspeed would ask for the CUDA toolkit, which nothing here needs.
	$(BIN)/python -m pip install --quiet torch
	DS_BUILD_OPS=0 DS_IGNORE_CUDA_DETECTION=1 $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

# The two runs are made anew, in a folder of their own. PATH: deepspeed starts the python that it finds there.
DEMO := deepspeed --quiet train.py --ds_config ds_configs/zero2.json

demo: setup
	rm -rf runs/make_demo
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEMO) --recipe demo_plain --workdir runs/make_demo/plain
	PATH="$(CURDIR)/$(BIN):$$PATH" $(DEMO) --workdir runs/make_demo/distilled
	$(BIN)/vitkd-ds compare runs/make_demo/plain runs/make_demo/distilled

# The tests of slurm/ start a real Slurm. Where it cannot be installed they are skipped, and the summary says so.
test: setup
	sh .ci/test_programs
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	sh .ci/test_programs
	$(BIN)/python -m pytest

# On a machine with a GPU: does it compute what a CPU does, and how fast? 25 minutes at most; rows in gpu/rows.json.
gpu: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/gpu.py

# For nodes without a compiler or root: dist/*.whl carry their C++ libraries. docs/install.md says how to install them.
wheels: setup
	sh .ci/wheels "$(CURDIR)/$(BIN)/python" dist

# Damaged JPEGs, tables and rows thrown at the C++ decoder, under the sanitizers. FUZZ_PHOTOS: JPEGs of your own.
FUZZ_SECONDS ?= 600

fuzz: setup
	$(BIN)/python fuzz/corpus.py build/fuzz/corpus $(FUZZ_PHOTOS)
	$(CXX) -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -o build/fuzz/decode_fuzz \
	    fuzz/decode_fuzz.cpp vitkd_ds/data/beton/csrc/decode.cpp vitkd_ds/data/beton/csrc/resize.cpp -ljpeg -lz -pthread
	build/fuzz/decode_fuzz build/fuzz/corpus --seconds $(FUZZ_SECONDS)
