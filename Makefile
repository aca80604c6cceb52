# make demo: the whole way on this machine's CPU. make test: lint, types and tests. make bench: a quick run of the
# instance library. make docs: the site, into out/site. All set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow bench docs lint types format schemas clean

demo: $(VENV)/.kernels
	$(BIN)/cappuccino demo

test: lint types $(VENV)/.kernels
	$(BIN)/pytest -n auto --dist loadfile

test-slow: lint types $(VENV)/.kernels
	$(BIN)/pytest -n auto --dist loadfile --slow

bench: $(INSTALLED)
	$(BIN)/cappuccino bench --quick

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --quiet --strict

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e ".[docs]"
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers cannot follow the folder mapping of an editable install, so they get a plain one.
types: $(INSTALLED)
	rm -rf $(VENV)/plain
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(VENV)/plain .
	rm -rf build
	MYPYPATH=$(VENV)/plain $(BIN)/mypy -p cappuccino

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(INSTALLED)
	$(BIN)/python -m cappuccino.schemas.generate

# Numba keys its cache by the file of the outermost function alone: an edit of any of them makes all of it stale.
KERNELS := $(shell grep -l '^@compiled' cappuccino/*.py cappuccino/*/*.py solvers/*.py solvers/*/*.py solvers/*/*/*.py)
$(VENV)/.kernels: $(KERNELS) | $(INSTALLED)
	find cappuccino solvers -name '*.nb[ci]' -delete
	$(BIN)/cappuccino plan instances/tiny1-llama7b.json -o out/kernels/plan.json --time-limit 1 >/dev/null 2>&1
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cappuccino needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools torch
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e ".[runtime,dev]"
	touch $@

clean:
	rm -rf $(VENV) build out *.egg-info
