# Each target installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
# One torch thread for each of two test processes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test test-all test-faults test-shared test-gpu lint docs benchmarks clean

demo: .venv/.installed
	$(BIN)/python prune_llm.py --model demo --pruning_ratio 0.5 --overwrite

# In less than two minutes on two cores: the unit tests and the tests of the command line that are quick.
# By files, whose tests share what is slow to make, and in their order: ordered by tests, slow files with few come last.
test: .venv/.installed
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow" tests/unit tests/cli

# All but what needs a GPU: slow tests, injected faults, and those on the models and texts in $$LLM_PRUNER_SHARED.
test-all: .venv/.installed
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not gpu"

# Injected faults against the contract of every command, and power cuts. LLM_PRUNER_FAULTS_EVERY=3 tries a third of them.
test-faults: .venv/.installed
	$(PYTEST) tests/faults

# The tests on the reference model and text in $$LLM_PRUNER_SHARED (default ../shared).
test-shared: .venv/.installed
	$(PYTEST) --dist worksteal tests/reference

test-gpu: .venv/.installed
	$(BIN)/python -m pytest tests/gpu

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

# The documentation, into build/site. A broken link or a public name without its page ends the build.
docs: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict

benchmarks: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[benchmarks]"
	$(BIN)/python benchmarks/tracing.py
	$(BIN)/python benchmarks/score_cut.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/house.py
	$(BIN)/python benchmarks/magnitude.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/smollm2.py
	$(BIN)/python benchmarks/real.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/profiled.py
	$(BIN)/python benchmarks/train_models.py
	$(BIN)/python benchmarks/reconstruction.py
	$(BIN)/python benchmarks/recover.py
	$(BIN)/python benchmarks/teacher_cache.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/sparse.py
	$(BIN)/python benchmarks/sparse_decode.py

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test,lint]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
