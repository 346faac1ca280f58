# Everything sets itself up: each target makes and reuses .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := runs/demo
.PHONY: demo test test-fast lint wheel bench docs clean

demo: .venv/installed
	$(BIN)/robustly demo --out $(DEMO)

# One thread a worker: two workers share two cores, and resumed runs are compared bit by bit.
# Without stored bytecode, both workers and each process of a test compile all of it anew, for 13 s in each worker.
test: lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The loop of whoever edits. Exhaustive sweeps, processes of their own and comparisons with peers are left to `test`.
test-fast: .venv/installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not peer"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python checks/plain_words.py

wheel: .venv/installed-dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir dist
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch dist/*.whl
	cd dist && ../.venv-wheel/bin/python -c "import robustly.cli, robustly.reports; print('imported', robustly.__version__)"
	cd dist && ../.venv-wheel/bin/robustly recipes
	rm -rf .venv-wheel

bench: .venv/installed-dev
	$(BIN)/python benchmarks/floor.py
	$(BIN)/python benchmarks/pgd_peers.py
	$(BIN)/python benchmarks/suites.py
	$(BIN)/python benchmarks/small_jobs.py
	$(BIN)/python benchmarks/first_minute.py
	$(BIN)/python benchmarks/user_code.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/training_memory.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/dynat_study.py

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-wheel dist site

# torch goes first and pinned: whatever depends on it must find it there.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

# The peers pin old or heavy things that the tests do not need, hence --no-deps.
.venv/installed-dev: .venv/installed requirements-peers.txt
	$(PIP) install --quiet --constraint constraints.txt --group test --group lint --group docs
	$(PIP) install --quiet --no-deps --requirement requirements-peers.txt
	touch $@
