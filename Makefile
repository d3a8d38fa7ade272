# make demo    the main job on the embedded pair        make test    the tests
#                                                       make sweep   what samples stand for in the tests: every family of models
# make lint    ruff and mypy                            make bench   benchmarks, into benchmarks/RESULTS.md
# make docs    the site, into build/site; notebooks run, warnings are errors
# make clean   the environment and what was built; lakes and answers stay
# make demo TORCH_INDEX=cu130   which build of torch: a name below download.pytorch.org/whl (cpu, cu130 ...), an index's URL,
#                               or default: the one that pip finds by itself (on Linux PyPI's brings CUDA, 6.6 GB)
PYTHON ?= python3
VENV ?= .venv
# Of tests: one more than there are cores, as some wait for other processes.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
TORCH_INDEX ?= cpu
BIN := $(VENV)/bin
TORCH_URL := $(if $(findstring ://,$(TORCH_INDEX)),$(TORCH_INDEX),https://download.pytorch.org/whl/$(TORCH_INDEX))
PIP := -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Asked before pip does, which tries an index that does not answer for minutes.
ANSWERS := import sys, urllib.request as u; u.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5).read(1)

.PHONY: demo test sweep lint bench docs clean

demo: $(VENV)/.installed
	$(BIN)/actlake demo

test: $(VENV)/.installed-dev
	GOMP_SPINCOUNT=10000 $(BIN)/python -m pytest -n $(WORKERS)

sweep: $(VENV)/.installed-dev
	GOMP_SPINCOUNT=10000 $(BIN)/python -m pytest -n $(WORKERS) -m sweep

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/actlake  # the root is the package: mypy wants it under its name
	MYPYPATH=$(VENV)/src $(BIN)/mypy $(addprefix -p actlake.,store analyze capture judge queries cli page lake edits explore intake_driver models.pocket benchmarks)

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/site/build.py

bench: $(VENV)/.installed-dev
	GOMP_SPINCOUNT=10000 $(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) build dist *.egg-info  # what was captured and answered is the user's

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("actlake needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing actlake into $(VENV) (a few minutes the first time) ..."
	@if [ "$(TORCH_INDEX)" = default ]; then :; \
	elif $(BIN)/python -c '$(ANSWERS)' '$(TORCH_URL)' 2>/dev/null; then \
	  echo "torch from $(TORCH_URL) ..." && $(BIN)/python $(PIP) --extra-index-url '$(TORCH_URL)' torch; \
	else echo "no torch to be had at $(TORCH_URL): it comes from where pip looks (TORCH_INDEX=URL names another index)"; fi
	$(BIN)/python $(PIP) -e '.[capture]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python $(PIP) -e '.[docs]'
	@touch $@
