# Every target works from a clean clone; the virtual environments are made where they are missing.
PYTHON ?= python3
VENV ?= .venv
GPU_VENV ?= .venv-gpu
PEERS_VENV ?= .venv-peers
BIN := $(VENV)/bin

.PHONY: serve test check fix install dist train-demo docker-test bench-peers gpu-check gpu-found stress clean

serve: $(VENV)/.serving
	$(BIN)/ddaebm serve

test: $(VENV)/.everything
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs $(ARGS)

check: $(VENV)/.everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fix: $(VENV)/.everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.everything

# The wheel and the source distribution, into dist/.
dist: $(VENV)/.everything
	rm -rf dist build *.egg-info
	$(BIN)/python -m build

train-demo: $(VENV)/.everything
	$(BIN)/ddaebm train debug --out runs/debug
	$(BIN)/ddaebm export runs/debug --out runs/debug-bundle

# The fault tests in full; STRESS=0.1 is near a tenth of that, ARGS="-k soak" one of them (docs/stress.md).
STRESS ?= 1
stress: $(VENV)/.everything
	STRESS=$(STRESS) $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/stress tests/hostile $(ARGS)

docker-test:
	PYTHON=$(PYTHON) docker/test.sh

# The servers that benchmarks/serving.py compares ours with.
bench-peers: $(VENV)/.everything $(PEERS_VENV)/.installed

# Speed and exactness of every backend on this machine's GPU, into docs/performance.md.
gpu-check: gpu-found $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/python benchmarks/gpu.py

# Before anything is downloaded.
gpu-found:
	@nvidia-smi -L 2>/dev/null | grep -q GPU || { echo "gpu-check: needs an NVIDIA GPU and its driver" >&2; exit 1; }

clean:
	rm -rf $(VENV) $(GPU_VENV) $(PEERS_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Serving needs no torch: seconds to install, under 250 MB.
$(VENV)/.serving: pyproject.toml constraints.txt | $(VENV)/bin/python
	test -e $(VENV)/.everything || $(BIN)/pip install --quiet -c constraints.txt --no-compile -e '.[cpu]'
	touch $@

$(VENV)/.everything: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,hub,otel,train,dev]'
	touch $@

# Of its own: onnxruntime and onnxruntime-gpu are one package by two names.
$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/pip install --quiet -c constraints.txt -e '.[gpu,torch]'
	touch $@

# Of its own, without this package: its code comes by PYTHONPATH.
$(PEERS_VENV)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --quiet -r benchmarks/peers/requirements.txt
	touch $@
