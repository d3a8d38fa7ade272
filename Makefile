# make demo    the main job on the embedded pair        make test    the full test suite
# make lint    ruff and mypy                            make bench   benchmarks, into benchmarks/RESULTS.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/actlake demo

test: $(VENV)/.installed-dev
	GOMP_SPINCOUNT=10000 $(BIN)/python -m pytest -n auto

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/actlake  # the root is the package: mypy wants it under its name
	MYPYPATH=$(VENV)/src $(BIN)/mypy $(addprefix -p actlake.,store analyze capture queries lake cli cli_ask cli_options cli_share cli_write intake_driver models.pocket benchmarks)

bench: $(VENV)/.installed-dev
	GOMP_SPINCOUNT=10000 $(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) lake report.html answers build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("actlake needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing actlake into $(VENV) (a few minutes the first time) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
