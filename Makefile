# make train   trains on the embedded data set, exports, predicts; all that it
#              writes is in runs/multiscale_shapes
# make benchmark   ours beside keras-hub, keras-cv and PyTorch (an hour)
# make test    the fast tests (five minutes on two cores)
# make test-slow   the slow tests, as in .ci/run
# make mutants a sample of one-token mutants, each against its mirrored tests
# make docs    the documentation; begins at build/docs/docs/index.html
# make lint    ruff's checks of code and format, and the types of the public API
# make types   the types alone
# make dev     installs what contributors need: ruff, pre-commit, Sphinx
# make help    this text
# make clean   removes .venv, runs and build
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/multiscale_shapes
# A crash of a process of pytest ends the run; a new process would wait for ever.
ONCE := --max-worker-restart 0
# Without the warnings of setuptools about editable installs.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet

.PHONY: train test test-slow mutants benchmark dev lint types docs help clean

# Runs again only when what is installed has changed.
$(VENV)/installed: setup.cfg constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing TensorFlow, Keras and what else setup.cfg names into \
$(VENV), a minute or two ..."
	@$(PIP) --upgrade pip
	@$(PIP) -c constraints.txt -e '.[test]'
	@touch $@
	@echo "Installed: $$($(BIN)/python -m pip list | tail -n +3 | wc -l) \
packages; 'make clean' removes them."

train: $(VENV)/installed
	$(BIN)/python -m training.quickstart --workdir $(RUN)

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 $(ONCE) -m 'not slow'

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 $(ONCE) -m slow

# Other samples: make mutants MUTANTS='--count 24 --seed 7 --folders layers'
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py $(MUTANTS)

$(VENV)/peers: $(VENV)/installed
	@echo "Installing PyTorch and keras-hub to compare with ..."
	@$(PIP) -c constraints.txt -e '.[test,peers]'
	touch $@

benchmark: $(VENV)/peers
	$(BIN)/python -m benchmarks

$(VENV)/dev: $(VENV)/installed
	@echo "Installing ruff, pre-commit and Sphinx ..."
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

dev: $(VENV)/dev

lint: types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/python .ci/check_types.py --at-least 86

# Any warning, such as a broken link, is an error.
docs: $(VENV)/dev
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs
	@echo "Documentation: build/docs/docs/index.html"

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

clean:
	rm -rf $(VENV) runs build *.egg-info
