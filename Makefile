# Two commands on a fresh machine: `make demo`, `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# `cpu` or `cuda`: which lock is installed; `site`: all of it but torch, on top of the torch that PYTHON imports.
BUILD ?= cpu
CPU_TORCH := $(shell grep ^torch== envs/lock-cpu.txt)
# `make test-faults`: how many kills, and the seed of their moments; `make fuzz`: minutes, and the first seed.
N ?= 20
MINUTES ?= 10
SEED ?= 0
# snakefmt looks for shfmt on the path.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install vllm demo demo-on-policy flash test test-fast test-slurm test-install test-faults fuzz bench lint docs site lock clean

# The environment is complete when its stamp exists; a changed lock makes it stale.
# PyPI's torch brings 5 GB of CUDA's libraries along on Linux; PyTorch's own index has a build without them. Where that index
# is out of reach, pip warns and takes what it finds.
ifeq ($(BUILD),site)
$(VENV)/.site: envs/site_torch.py envs/lock-cuda.txt pyproject.toml
	$(PYTHON) envs/site_torch.py $(VENV)
	touch $@
else
$(VENV)/.$(BUILD): envs/lock-$(BUILD).txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %d.%d: make install PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	@echo "installing envs/lock-$(BUILD).txt into $(VENV): about 2 GB for cpu, 5 GB for cuda; minutes without a word"
	@[ $(BUILD) != cpu ] || $(BIN)/pip install --quiet --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu $(CPU_TORCH)
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --requirement envs/lock-$(BUILD).txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
endif

help:  ## this list
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

install: $(VENV)/.$(BUILD)  ## the environment in .venv; BUILD=cuda for GPUs, BUILD=site on top of a torch that is there

# vLLM needs another torch and another Transformers than training: nothing of this project is in there.
.venv-vllm/.done: envs/lock-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --upgrade pip
	@echo "installing envs/lock-vllm.txt into .venv-vllm: about 10 GB; minutes without a word"
	.venv-vllm/bin/pip install --quiet --requirement envs/lock-vllm.txt
	touch $@

vllm: .venv-vllm/.done  ## vLLM in an environment of its own, for generate.server

flash: $(VENV)/.$(BUILD)  ## FlashAttention 2, compiled against the torch in there: needs nvcc of its CUDA version, and hours
	$(BIN)/pip install --no-deps --no-build-isolation "flash-attn>=2.8"

demo: $(VENV)/.$(BUILD)  ## the embedded default: data -> SFT -> DPO -> export, on this machine
	$(BIN)/snakemake --config method=dpo

demo-on-policy: $(VENV)/.$(BUILD)  ## SFT, then two rounds of sampling, scoring, pairing and DPO, on this machine
	$(BIN)/snakemake --configfile config/on_policy.yaml

# Two at a time; a file's tests stay together, because they share what it sets up. In the order of their names, so that
# a file with one long test is not the last, with one core idle beside it.
test: $(VENV)/.$(BUILD) lint  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30

test-fast: $(VENV)/.$(BUILD)  ## without the tests that start training processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slurm: $(VENV)/.$(BUILD)  ## the tests on a real Slurm of three nodes, started on this machine for them
	PYTHON=$(BIN)/python tests/slurm/run.sh

test-install: $(VENV)/.$(BUILD)  ## install for CUDA and on a machine's own torch, in environments of their own; 8 GB, network
	POST_TRAINING_TEST_INSTALL=1 $(BIN)/python -m pytest -n 2 tests/install

test-faults: $(VENV)/.$(BUILD)  ## kill training at N random moments, and compare what comes of it
	$(BIN)/python tests/faults/harness.py --kills $(N) --seed $(SEED)

fuzz: $(VENV)/.$(BUILD)  ## files with faults through the data stages for MINUTES, from SEED on
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) --seed $(SEED)

bench: $(VENV)/.$(BUILD)  ## ratios against peers, with spread
	$(BIN)/python benchmarks/run.py

lint: $(VENV)/.$(BUILD)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

docs: $(VENV)/.$(BUILD)  ## write config/README.md and config/schema.json from the schema
	$(BIN)/python -m post_training.config.document

site: $(VENV)/.$(BUILD)  ## the documentation as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The second has the first's versions and the index's build of torch, whatever torch pip's settings here would prefer.
lock:  ## resolve the newest versions that pyproject.toml allows, for CPU, CUDA and vLLM; names and versions only
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet --upgrade pip setuptools wheel
	DS_BUILD_OPS=0 .lock/bin/pip install --quiet torch==2.13.0
	DS_BUILD_OPS=0 .lock/bin/pip install --quiet ".[cpu,slurm,evaluation,dev]"
	.lock/bin/pip freeze --exclude post-training | sed 's/+cpu$$//' | grep -v ' @ ' > envs/lock-cpu.txt
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= DS_BUILD_OPS=0 .lock/bin/pip install --quiet --dry-run --ignore-installed \
	  --report .lock/report.json --constraint envs/lock-cpu.txt ".[cuda,slurm,evaluation,dev]"
	.lock/bin/python envs/lock.py .lock/report.json > envs/lock-cuda.txt
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= .lock/bin/pip install --quiet --dry-run --ignore-installed --only-binary :all: \
	  --report .lock/vllm.json "vllm==0.33.0"
	.lock/bin/python envs/lock.py .lock/vllm.json > envs/lock-vllm.txt
	rm -rf .lock build

clean:  ## remove the environment and the demo's results
	rm -rf $(VENV) outputs .snakemake site
