# Two commands are enough on a machine with Python >= 3.10:
#   make quickstart   install the pinned set into .venv, train on the embedded benchmark, print before/after
#   make test         same installation, run the test suite
# Further: make venv | lint | format | types | wheel | clean
#
# Variables: PYTHON=python3.12 (interpreter for .venv), TORCH_PIP_ARGS="..."
# (further pip arguments for torch, such as an index of CPU builds),
# VENV=.venv-floor (another folder), PYTEST_ARGS="-x tests/test_cli.py", QUICKSTART_ARGS="--trainer.max_steps 10".
# The oldest tested set, in a folder of its own:
#   make test VENV=.venv-floor PYTHON=python3.12 TORCH=torch==2.11.0 CONSTRAINTS=constraints-floor.txt
# Other TORCH, CONSTRAINTS or PYTHON than the folder was installed with: it is installed anew.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
TORCH := torch==2.13.0
CONSTRAINTS := constraints.txt
# Named after the set that it stands for: asking for another one installs that.
STAMP := $(VENV)/.installed-$(shell printf '%s' '$(TORCH) $(CONSTRAINTS) $(PYTHON)' | cksum | cut -d' ' -f1)
TORCH_PIP_ARGS ?=
PYTEST_ARGS ?=
QUICKSTART_ARGS ?=
QUICKSTART := runs/quickstart

# Several threads slow small CPU models down (they wait for one another); tokenizers' own threads fork badly.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv quickstart test lint format types wheel clean

help:
	@sed -n '1,/^$$/p' Makefile | sed 's/^# \{0,1\}//'

venv: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	      python="$$candidate"; break; \
	    fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python >= 3.10 found (tried python3 and python3.10 to python3.13); install one or say make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $$python is not a Python >= 3.10; install one or say make PYTHON=/path/to/python" >&2; exit 1; }; \
	version='import sys; print("%d.%d" % sys.version_info[:2])'; \
	if [ -x $(PY) ]; then \
	  have="$$($(PY) -c "$$version")"; want="$$("$$python" -c "$$version")"; \
	  if [ -n "$(PYTHON)" ] && [ "$$have" != "$$want" ]; then \
	    echo "error: $(VENV) has Python $$have, but PYTHON=$(PYTHON) is Python $$want: name another folder (VENV=.venv-floor) or remove this one (rm -r $(VENV))" >&2; exit 1; \
	  fi; \
	else \
	  echo "creating $(VENV) with $$($$python --version)"; \
	  "$$python" -m venv $(VENV) \
	    || { rm -rf $(VENV); echo "error: '$$python -m venv' failed; on Debian or Ubuntu install the package python3-venv" >&2; exit 1; }; \
	fi
	@rm -f $(VENV)/.installed*
	@[ -e $(VENV)/.gitignore ] || echo '*' > $(VENV)/.gitignore # ruff, too, passes over what git ignores
	$(PY) -m pip install --quiet -c $(CONSTRAINTS) $(TORCH_PIP_ARGS) $(TORCH)
	$(PY) -m pip install --quiet -c $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# A finished run is shown again, an interrupted one resumed.
quickstart: $(STAMP)
	@if [ -f $(QUICKSTART)/summary.json ]; then \
	  $(PY) -m lightning_dterm.cli summary $(QUICKSTART)/summary.json; \
	  echo "this run was already there; to run anew: rm -r $(QUICKSTART) && make quickstart"; \
	else \
	  resume=""; last=$(QUICKSTART)/checkpoints/last.ckpt; \
	  if [ -f "$$last" ]; then echo "resuming the interrupted run from $$last"; resume="--ckpt_path $$last"; fi; \
	  processes=""; \
	  if [ "$$($(PY) -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || echo 1)" -ge 2 ]; then \
	    processes="--config configs/strategy/ddp.yaml"; \
	  fi; \
	  $(PY) train.py fit --config configs/quickstart.yaml $$processes $$resume $(QUICKSTART_ARGS); \
	  [ -f $(QUICKSTART)/summary.json ] || { echo "stopped before the end; make quickstart goes on from there" >&2; exit 1; }; \
	fi

test: $(STAMP)
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Type checkers do not follow the package-dir mapping: check a tree laid out as the wheel lays it out.
types: $(STAMP)
	@root="$$PWD"; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; \
	cp -r lightning_dterm "$$tree/"; \
	for part in data callbacks configs; do cp -r "$$part" "$$tree/lightning_dterm/$$part"; done; \
	cd "$$tree"; "$$root/$(PY)" -m mypy --config-file "$$root/pyproject.toml" --cache-dir "$$root/.mypy_cache" -p lightning_dterm

wheel: $(STAMP)
	rm -rf build dist
	$(PY) -m build --wheel --no-isolation --outdir dist .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
