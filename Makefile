# Everything happens in .venv, which the first command makes.
PYTHON ?= python3
# The plain name would bring several gigabytes of GPU libraries on Linux.
TORCH ?= torch==2.13.0
# Half of the tests' time is waiting and starting of processes; more than two need much memory.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# pip would use one processor. Some packages hold files for other versions of Python.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: demo test fast lint types package docs bench clean

demo: $(VENV)/demo ## record five trainings and look at them
	$(BIN)/tachograph demo

test: $(VENV)/test ## run all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

fast: $(VENV)/test ## run the tests that take under a few seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/mypy

package: $(VENV)/test ## build the wheel, install it alone, record a run with each callback's import
	$(BIN)/python tests/packaging/check_wheel.py

docs: $(VENV)/test ## write the parts of docs/ that follow from the code
	$(BIN)/python docs/generate.py

bench: $(VENV)/test ## print the figures of the README
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make demo PYTHON=python3.11 names another")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); this takes a few minutes the first time."
	$(PIP) --upgrade pip

$(VENV)/demo: $(VENV)/bin/python pyproject.toml
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[all]"
	@$(COMPILE)
	@touch $@

$(VENV)/test: $(VENV)/demo
	$(PIP) --group dev
	@$(COMPILE)
	@touch $@
