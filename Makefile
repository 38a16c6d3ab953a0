# Everything happens in .venv, set up by the first target that needs it; what is set up already is left alone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint train venv clean

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
RECORDING ?=

# The first Python 3.10 to 3.12, for which ROS comes as wheels; where ROS is sourced, its own, which is 3.14 in Lyrical.
SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $(if $(ROS_DISTRO),14,12)))
PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.10,\
    $(shell $(name) -c '$(SUITABLE)' >/dev/null 2>&1 && echo $(name))))

# A ROS installation is used where its client library can be imported; otherwise ROS comes as wheels.
ROS := $(and $(ROS_DISTRO),$(shell $(PYTHON) -c 'import rclpy.node' >/dev/null 2>&1 && echo sourced))

# The ROS wheels restart Python once with their libraries on its path; .venv must not inherit another venv's mark.
ifdef _ROS_WHEELS_BOOTSTRAP_COMPLETE
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
endif

help: ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.ready ## run the node on a recording: make demo [RECORDING=path]
	@$(VENV)/bin/evspec demo $(if $(RECORDING),--recording "$(RECORDING)")

test: lint ## run linters, type checks and every test
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

lint: $(VENV)/.ready-dev ## run ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

train: $(VENV)/.ready ## train the tiny checkpoints in models/ (hours on two cores)
	@$(VENV)/bin/evspec train tiny
	@$(VENV)/bin/evspec train block --vocabulary 96 --block 32 --target models/tiny_video_llava \
	    --event-model models/tiny_eventgpt --draft-head models/tiny_block
	@for kind in eagle eagle3 eventgpt_adapter feature; do \
	    $(VENV)/bin/evspec train $$kind --target models/tiny_video_llava --event-model models/tiny_eventgpt \
	        --draft-head models/tiny_$$kind; \
	done

venv: $(VENV)/.ready-dev ## set up .venv

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build install log dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "evspec_ros needs Python 3.10, 3.11 or 3.12: install one (apt install python3)."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv is incomplete: apt install python3-venv."; exit 1; }
ifeq ($(ROS),)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' && test "$$(uname -sm)" = "Linux x86_64" || \
	    { echo "ROS 2 comes as wheels for Python 3.11 and 3.12 on Linux x86_64 only: source a ROS installation first."; exit 1; }
	@command -v gcc g++ >/dev/null && test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	    { echo "Compiling the ROS messages needs gcc, g++ and Python's headers: apt install gcc g++ python3-dev."; exit 1; }
endif
	@echo "Setting up $(VENV): a few minutes, once."
	@$(PYTHON) -m venv $(if $(ROS),--system-site-packages) $(VENV)
	@touch $@

# The package itself is installed editable; its node has to be where ROS looks for executables, too.
$(VENV)/.ready: $(VENV)/.created requirements.txt requirements-ros.txt constraints-system-ros.txt setup.py setup.cfg \
    package.xml $(wildcard evspec_ros/interfaces/*.py evspec_ros/interfaces/*/*/*.msg evspec_ros/interfaces/*/*/*.action)
ifeq ($(ROS),)
	@$(PIP) install -r requirements.txt -r requirements-ros.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(PY) -m evspec_ros.interfaces.build
else
	@$(PIP) install -c constraints-system-ros.txt -e .
endif
	@mkdir -p $(VENV)/lib/evspec_ros
	@ln -sf ../../bin/evspec ../../bin/evspec_node $(VENV)/lib/evspec_ros/
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	@$(PIP) install $(if $(ROS),-c constraints-system-ros.txt ruff mypy pytest pytest-xdist hypothesis flatbuffers,-r requirements-dev.txt)
	@touch $@
