# Every target prepares .venv by itself: a machine needs only Python >= 3.11 and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/installed
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder
RUN ?= runs/demo
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --write-all --doctree-dir build/doctrees

.PHONY: demo test test-slow mutants check docs docs-check bench lock clean

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxdiff needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## train on the embedded digits, sample, evaluate; look at runs/demo/report.html
	$(BIN)/jaxdiff demo --run $(RUN)

test: $(STAMP)  ## the suite: seven minutes on 2 idle cores
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)  ## the longer proofs
	$(PYTEST) -m slow --override-ini faulthandler_timeout=3600

mutants: $(STAMP)  ## classic mistakes planted one by one: each has to be rejected (MUTANTS="words" for some of them)
	$(BIN)/python tests/run_mutants.py $(MUTANTS)

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/docs: $(STAMP)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[docs]"
	@touch $@

docs: .venv/docs  ## the site: build/docs/index.html (installs the docs extra); a warning is an error
	$(SPHINX) --builder html docs build/docs

docs-check: docs  ## the site, and that each public name has its page and each link its end
	$(BIN)/python docs/extensions/check.py build/docs

bench: $(STAMP)  ## speed beside PyTorch (installs the bench extra)
	$(BIN)/pip install --quiet "torch>=2.8"
	$(BIN)/python benchmarks/speed.py

lock:  ## resolve the pins again (needs uv)
	uv pip compile --universal --python-version 3.11 --extra dev pyproject.toml -o requirements.lock --no-header --no-annotate --upgrade

clean:
	rm -rf .venv .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
