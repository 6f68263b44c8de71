# Everything a user or a developer types. Each target sets up what it needs; nothing else must be typed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.breakwater-setup

# Two more than cores: tests of real processes wait a good deal, and with one more a third of the time was idle.
ON_ALL_CORES := --numprocesses $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() + 2))') --dist loadfile --no-loadscope-reorder

# Many containers set it. Each of the hundreds of processes that tests start would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-flower test-wheel test-containers check format bench gpu fuzz torture soak docs constraints proto clean

help:
	@echo "make demo       see it work (about a minute after set-up)"
	@echo "make test       the test suite; make test-fast leaves out real processes and long runs"
	@echo "make test-flower  Flower deployments and simulations, each version in an environment of its own"
	@echo "make test-wheel   the wheel, built, installed elsewhere and used, and the fast unit tests on it"
	@echo "make test-containers  the image built and run by podman, as root; skips where podman cannot"
	@echo "make check      lint, formatting, types, import layers"
	@echo "make bench      the benchmarks"
	@echo "make gpu        on a machine with CUDA: its tests, and samples per second beside plain PyTorch"
	@echo "make fuzz       over a million hostile inputs; make torture kills a server 50 times; make soak runs 10,000 rounds"
	@echo "make docs       the documentation site, in site/"
	@echo "make setup      only build .venv"

setup: $(STAMP)

# uv sets up in seconds what takes pip minutes; without it, and if it cannot be had, pip does. Compiled once here, packages
# are imported in half the time by each of many processes, also where Python may not write beside them; but of the thousands
# of modules of `lora` one example imports a few.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.12"; rm -rf $(VENV); exit 1; }
	if $(BIN)/python -m pip install --quiet --constraint constraints.txt uv; then \
	  $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[torch,monitor,table,docs,dev]' && \
	  $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[lora]'; \
	else \
	  $(BIN)/python -m pip install --constraint constraints.txt --editable '.[torch,monitor,table,lora,docs,dev]'; \
	fi
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/breakwater demo

test: $(STAMP)
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m "not flower and not wheel and not containers"

test-fast: $(STAMP)
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m "not slow and not flower and not wheel"

# A Flower simulation that is not up within 30 s is over for Flower, so no more of them at a time than cores.
test-flower: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder tests/flower

test-wheel: $(STAMP)
	$(BIN)/python -m pytest $(ON_ALL_CORES) tests/wheel

# Debian packages for a base image, and all of ours into an image: some minutes, and root.
test-containers: $(STAMP)
	$(BIN)/python -m pytest tests/deployment/test_containers.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.link
	$(BIN)/python -m benchmarks.codec
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.a9a
	$(BIN)/python -m benchmarks.flower

gpu: $(STAMP)
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: PyTorch finds no CUDA device here")'
	$(BIN)/python -m pytest tests/unit/tasks/test_compute.py
	$(BIN)/python -m benchmarks.training --device cuda
	$(BIN)/python -m benchmarks.training --device cuda --precision bf16

# Minutes each; docs/threat-model.md has what they gave.
fuzz: $(STAMP)
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --only-binary atheris --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz

torture: $(STAMP)
	$(BIN)/python -m benchmarks.torture

soak: $(STAMP)
	$(BIN)/python -m benchmarks.soak

docs: $(STAMP)
	$(BIN)/python -m docs.make

# After a change of a bound in pyproject.toml, or to move to newer versions.
constraints: $(STAMP)
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml --output-file constraints.txt

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. link/link.proto

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site build
