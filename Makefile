# Both targets make the environment by themselves: a .venv here, with what pyproject.toml asks for.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check soak bench-views bench-step docs clean

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed  ## pretrain SimSiam on scikit-learn's digits and evaluate it
	$(BIN)/selfdistill pretrain simsiam data=digits
	@run=$$(ls -td runs/simsiam-digits-* | head -n 1) && $(BIN)/selfdistill evaluate $$run --protocol knn && echo "run folder: $$run"

test: .venv/installed  ## all tests, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/installed  ## style, types, and imports that go one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: .venv/installed  ## 100 kills over the eight methods, then 1,000 mutated images and recipes and 100,000 files
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --kills 100
	SELFDISTILL_FUZZ=1000 $(BIN)/python -m pytest tests/test_hostile.py tests/test_any_recipe.py

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

bench-views: .venv/bench  ## images to views: lightly, torchvision, kornia and ours in turn
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/views.py --cores 1
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/views.py --cores 2

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: .venv/docs  ## the documentation site, in site/; warnings are errors
	PYTHONPATH=. $(BIN)/zensical build --clean --strict

bench-step: .venv/bench  ## one training step: lightly and ours in turn
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --memory

clean:
	rm -rf site .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
