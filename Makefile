# A fresh machine requires only Python 3.11 or newer, and make.
#   make train            train on the digits, from installation to final accuracy
#   make test             run the fast tests
# ARGS is passed to the program: make train ARGS="--epochs 3", make test ARGS="-k model".
# Tests run in two processes; WORKERS=8 uses eight. Each needs a core and 2 GB of memory.
# CONSTRAINTS=constraints.txt installs the versions that CI runs.

PYTHON ?= python3
CONSTRAINTS ?=
WORKERS ?= 2
BIN := .venv/bin
PYTEST = python -m pytest --numprocesses $(WORKERS) --dist loadfile
# Create a virtual environment in the folder $(1). Without python3-venv, Debian's python3 cannot,
# but uv can.
VENV = $(PYTHON) -m venv $(1) || { rm -rf $(1); uv venv --seed --python $(PYTHON) $(1); } || \
	{ echo "$(PYTHON) cannot create a virtual environment: install python3-venv or uv"; exit 1; }
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: train test slow long walkthrough oracles bounds newest mutants check lint types fmt constraints clean

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: .venv/installed-dev
	$(BIN)/$(PYTEST) -m "not slow" $(ARGS)

slow: .venv/installed-dev
	$(BIN)/$(PYTEST) -m "slow and not long and not walkthrough" $(ARGS)

# Slow tests that take minutes each: run them before a release and after changing what they test.
long: .venv/installed-dev
	$(BIN)/$(PYTEST) -m long $(ARGS)

# Every command in README and docs, and the benchmarks at a small size.
walkthrough: .venv/installed-dev
	$(BIN)/$(PYTEST) -m walkthrough $(ARGS)

# Install torchvision, TensorFlow and OpenCV, which reads Caffe's files (several GB), and run the tests
# that compare our results with theirs. TensorFlow runs in its own process, because it conflicts with
# some libraries.
ORACLES := $(addprefix convert/test_,caffe.py convert.py export.py torch_file.py torchvision.py) lab/test_report.py

oracles: .venv/installed-dev
	$(INSTALL) --editable '.[dev,oracles]'
	$(INSTALL) --no-deps torch-lucent==0.1.8  # it requires libraries for notebooks, in old versions
	$(BIN)/$(PYTEST) -m "not long" $(addprefix tests/,$(ORACLES))
	$(BIN)/python -m pytest tests/convert/test_tf_slim.py tests/convert/test_inception5h.py
	$(BIN)/python -m pytest tests/data/test_tensorflow.py

# Run the core tests and the notebooks with the oldest supported libraries (bounds), or with the newest
# (newest).
LOWEST := jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 orbax-checkpoint==0.12.4 grain==0.2.15
CORE := tests/model tests/training tests/inference tests/test_train.py tests/test_library.py

bounds:
	$(call VENV,.venv-bounds)
	.venv-bounds/bin/python -m pip install --quiet --editable '.[dev]' $(LOWEST)
	.venv-bounds/bin/$(PYTEST) -m "not slow" $(CORE) $(ARGS)
	.venv-bounds/bin/python -m pytest tests/test_notebook.py

newest:
	$(call VENV,.venv-newest)
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	.venv-newest/bin/$(PYTEST) -m "not slow" $(CORE) $(ARGS)
	.venv-newest/bin/python -m pytest tests/test_notebook.py

# Measure the fraction of one-line faults in the package that the fast tests detect; takes hours.
mutants: .venv/installed-dev
	$(INSTALL) --editable '.[dev,mutants]'
	$(BIN)/python benchmarks/mutants.py --jobs $(WORKERS) $(ARGS)

check: lint types test

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/pyright

fmt: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pin the versions that CI installs, for every supported Python at once.
constraints: .venv/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --upgrade \
		--no-annotate --no-header pyproject.toml --output-file constraints.txt

clean:
	rm -rf .venv .venv-bounds .venv-newest .pytest_cache .ruff_cache dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python %d.%d is too old; requires 3.11 or newer: make PYTHON=python3.12 ..." % v[:2])'
	$(call VENV,.venv)

.venv/installed: .venv/bin/python requirements.txt pyproject.toml
	@echo "installing the requirements into .venv, one to three minutes the first time ..."
	$(INSTALL) --requirement requirements.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing the development tools into .venv ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@
