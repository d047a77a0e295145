# `make tables` and `make test` are all that a fresh machine with Python 3.11 needs; `make` alone lists the rest.

PYTHON := $(or $(PYTHON),$(shell command -v python3.11 || command -v python3))
VENV := .venv
TORCH ?= torch==2.13.0
CORES ?= all

# The environment is made again when the lock or the package's metadata have changed.
READY := $(VENV)/ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d ' ' -f 1)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup tables report foundations test test-all lint bench downloader lmms-eval audit restore record lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## environment in .venv; TORCH="torch==2.13.0 --index-url URL" chooses another build of torch

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(TORCH)
	$(VENV)/bin/pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/ready-*; touch $@

tables: setup ## from nothing to results/tables and results/figures; with a live view of the jobs
	snakemake --logger dreamllm --cores $(CORES) results/tables
	@dvc fetch --quiet --remote store results/summary  # of the recorded run, to compare with: dvc metrics diff
	@echo "Tables and figures:        results/tables/README.md, results/figures/README.md"
	@echo "Generate text and images:  $(VENV)/bin/dreamllm generate \"draw a red cat on grass.\"; --words lists what it knows"
	@echo "Follow every number:       make report, then open results/report/index.html"
	@python workflow/changed.py

report: setup ## results/report/index.html with all that the tables show and where it is from, RO-Crate, CODECHECK manifest
	snakemake --logger dreamllm --cores $(CORES) report

foundations: setup ## train the foundation models from nothing instead of fetching them, and measure them
	snakemake --logger dreamllm --cores $(CORES) --configfile=config/foundations.yaml foundations data/foundations/card.json

test: lint ## the tests, with a miniature run of the whole DAG; test-all has the slow ones, too
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(LINTED)

test-all: test ## the tests of make test, then those of minutes more: a Slurm cluster of this machine alone
	pytest -m slow

LINTED := --deselect tests/test_dag.py::test_snakemake_lint_has_no_findings # what make lint has run

lint: setup ## formatting and static checks
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	pytest -q tests/test_dag.py -k lint

bench: setup ## time a training step and decoding, beside a naive implementation and the authors' code
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 python benchmarks/speed.py

downloader: ## img2dataset, which fetches pictures by address, in an environment of its own
	$(PYTHON) -m venv .img2dataset
	.img2dataset/bin/pip install --quiet img2dataset==1.47.0

lmms-eval: ## lmms-eval, which evaluates models on other people's benchmarks, with this package in an environment of its own
	$(PYTHON) -m venv .lmms-eval
	.lmms-eval/bin/pip install $(TORCH)
	.lmms-eval/bin/pip install --quiet --require-hashes --no-deps -r requirements.lock
	.lmms-eval/bin/pip install --quiet --no-deps --no-build-isolation -e .
	.lmms-eval/bin/pip install --quiet lmms-eval==0.7.3

audit: setup ## sixteen checks of what can be trusted, with reason and fix
	dreamllm audit

restore: setup ## bring recorded files by DVC, so that nothing is left to run
	python workflow/restore.py

record: setup ## write down in dvc.lock what has been made, and push it
	python workflow/record.py

lock: setup ## write requirements.lock from what is installed in .venv
	PYTHON=$(PYTHON) bash workflow/lock.sh

clean: ## remove what the default run made; foundations, environment and DVC's cache stay
	rm -rf results/checkpoints results/predictions results/features results/metrics results/items results/tables results/figures results/summary results/report ro-crate-metadata.json codecheck.yml
	rm -rf data/emoji scratch logs timings
