# Two commands are enough: `make reproduce` (the whole loop) and `make test`. Both set up what they need first.
#   PROFILE=smoke|laptop|gpu|paper   which profile `make reproduce` runs
#   PYTHON=/path/to/python3.11       which Python (3.11 to 3.13) the virtual environment is made from
#   TORCH_INDEX=URL                  a further package index for torch, e.g. the one with CPU builds
#   TESTS=2                          processes that `make test` runs side by side, each on one core
SHELL := /bin/bash
VENV ?= .venv
PROFILE ?= laptop
TESTS ?= 2
OUTPUT ?= runs/$(PROFILE)
export VENV

.PHONY: help setup browser quickstart reproduce test test-quick check docs lab doctor clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup:  ## virtual environment, packages, a Vulkan driver (a no-op when they are there)
	@bash scripts/setup.sh

browser:  ## Debian's Chromium, for the tests of the widgets (as root; without it they are skipped)
	@bash scripts/browser.sh

quickstart: setup  ## two minutes on what is shipped: a policy, an episode, where it looks
	@$(VENV)/bin/refinevla run 00 --profile $(PROFILE) --output runs/quickstart

reproduce: setup  ## run the six notebooks headlessly: PROFILE=laptop, OUTPUT=runs/laptop
	@$(VENV)/bin/refinevla reproduce --profile $(PROFILE) --output $(OUTPUT)

test: setup  ## the test suite, two processes side by side
	@$(VENV)/bin/python -m pytest -n $(TESTS) --dist loadgroup --no-loadscope-reorder

test-quick: setup  ## the tests that take less than about five seconds each
	@$(VENV)/bin/python -m pytest -n $(TESTS) --dist loadgroup --no-loadscope-reorder -m "not slow"

check: setup  ## ruff, mypy, and that the package stays small
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/python scripts/count_tokens.py --limit 216350

docs: setup  ## the documentation as a site, in site/ (fails on a broken link)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lab: setup  ## open the notebooks in JupyterLab
	@$(VENV)/bin/jupyter lab --notebook-dir=. notebooks/01_teacher_annotation.ipynb

doctor: setup  ## one line a requirement, each with the fix
	@$(VENV)/bin/refinevla doctor

clean:  ## remove run outputs and caches (the virtual environment stays)
	rm -rf runs build .pytest_cache .ruff_cache .mypy_cache .hypothesis
