# Every command sets up .venv itself from plain python3; later runs reuse it until
# pyproject.toml or constraints.txt change.
PYTHON ?= python3
# A package index with CPU builds of torch, asked before the usual one. Without it, Linux machines
# get the CUDA build, which also runs on a CPU but is some gigabytes larger.
TORCH_INDEX ?=
# Options handed through, as in: make test ARGS="-k bank"
ARGS ?=
# bench and evaluate: a file in SQuAD's layout, plain or .xz; train: the directory of the corpora
DATA ?=
# train: where it keeps its checkpoints and goes on from, and its wall-clock budget
RUN ?= runs/mini
MINUTES ?= 240

BIN := .venv/bin
STAMP := .venv/.installed
TRAIN_STAMP := .venv/.installed-train
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NAMED_DATA = $(or $(DATA),$(error DATA is not given, as in: make $@ DATA=dev-v1.1.json))
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help venv demo serve test lint format bench evaluate train clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## set up .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) $(INDEX) torch
	$(PIP) $(INDEX) --editable '.[dev]'
	@touch $@

$(TRAIN_STAMP): $(STAMP)
	$(PIP) $(INDEX) --editable '.[train]'
	@touch $@

demo: $(STAMP) ## questions before and after documents are learned, over HTTP
	$(BIN)/python deploy/demo/demo.py

serve: $(STAMP) ## run the server; MAC_HOST, MAC_PORT, MAC_DATA_DIR and every other setting apply
	$(BIN)/mac serve $(ARGS)

test: $(STAMP) ## pytest
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## latency and documents/s over HTTP; DATA=FILE
	$(BIN)/mac bench --start --data '$(NAMED_DATA)' $(ARGS)

evaluate: $(STAMP) ## SQuAD-Seq in all modes; DATA=FILE
	$(BIN)/mac evaluate squad-seq --data '$(NAMED_DATA)' $(ARGS)

train: $(TRAIN_STAMP) ## train; DATA=DIRECTORY RUN=DIRECTORY MINUTES=240 ARGS='--bundle DIRECTORY'
	$(BIN)/mac train mini --data '$(NAMED_DATA)' --run '$(RUN)' --minutes '$(MINUTES)' $(ARGS)

clean: ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build mac_server.egg-info
	find mac_core server tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +
