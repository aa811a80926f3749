# make train   trains on the embedded data set, evaluates, exports, predicts
# make benchmark   ours beside keras-hub, keras-cv and PyTorch (an hour)
# make test    the fast tests (six to ten minutes on two cores)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/multiscale_shapes
OUT := saved_models/multiscale_shapes

.PHONY: train test test-slow benchmark lint clean

# Runs again only when what is installed has changed.
$(VENV)/installed: setup.cfg constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

train: $(VENV)/installed
	$(BIN)/python -m training.quickstart --workdir $(RUN) --output $(OUT)

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m 'not slow'

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m slow

$(VENV)/peers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,peers]'
	touch $@

benchmark: $(VENV)/peers
	$(BIN)/python -m training.benchmark

lint:
	ruff check . && ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
