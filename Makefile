# Two commands do everything: `make demo` and `make test`. Each makes .venv first; delete .venv to start afresh.
PYTHON ?= python3
RUN := .venv/bin/python -m
PIP := DS_BUILD_OPS=0 .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := .venv/.ready
NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or later, got $(PYTHON) of " + \
	sys.version.split()[0] + "; another one: make setup PYTHON=python3.12")'

.PHONY: setup demo test test-faults lint format bench gpu

setup: $(STAMP)

# torch first: a package that merely asks for torch would bring another build of it. Last, codebases whose losses the
# tests compare ours with: the bare wheels (4 MB), read as source (tests/ops/peers/source.py), and what verl needs (1 MB)
# to run on a CPU in a process of its own (tests/integrations/test_verl.py); and gradio with what it needs (40 MB), which
# only the page of --serve sees: it asks for a Pillow below 13 (tests/evaluate/test_serve.py); and the last TRL whose loss
# is Liger's (1 MB), for tests/integrations/test_trl_liger.py.
VERL := tensordict omegaconf codetiming orjson pyvers cloudpickle
GRADIO := gradio gradio_client hf_gradio fastapi starlette uvicorn python_multipart orjson pandas brotli groovy pydub \
	pytz safehttpx semantic_version tomlkit
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)
	test -x .venv/bin/pip || { $(PYTHON) -c $(NEW_ENOUGH) && rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(PIP) torch numpy setuptools wheel scikit-build-core cmake ninja
	$(PIP) --no-build-isolation -e ".[train,dev]"
	$(PIP) --no-deps --upgrade --target .venv/peers trl verl ms-swift openrlhf $(VERL)
	$(PIP) --no-deps --upgrade --target .venv/demo $(GRADIO)
	$(filter-out -c constraints.txt,$(PIP)) --no-deps --upgrade --target .venv/trl_liger "trl==1.13.*"
	touch $@

demo: setup
	.venv/bin/torchrun --nproc_per_node 1 -m univg_fast.train --config demo $(ARGS)

test: setup lint
	$(RUN) pytest -n 2 --dist loadfile $(ARGS)

# what happens to runs that are stopped, killed, poisoned or run out of disk: all of tests/faults (docs/reliability.md)
test-faults: setup
	$(RUN) pytest -n 2 --dist loadfile -m "" tests/faults $(ARGS)

lint: setup
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: setup
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

# the packages that are measured against
.venv/.bench: $(STAMP)
	$(PIP) --no-build-isolation -e ".[train,dev,bench]"
	touch $@

# everything that is measured, in ten minutes (on a GPU eight), into bench/results; --base REF compares two commits
bench: .venv/.bench
	$(RUN) bench.suite --device cpu $(ARGS)

gpu: .venv/.bench
	$(RUN) bench.suite --device cuda $(ARGS)
