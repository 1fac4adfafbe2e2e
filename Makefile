# Every target sets up what it needs the first time; a second run starts at once.
PYTHON := .venv/bin/python
RUN := runs/demo

.PHONY: setup for-tests demo test test-all check bench lock clean

setup:
	@.ci/setup

for-tests:
	@.ci/for-tests

demo: setup
	$(PYTHON) -m vla.recipes.demo run_dir=$(RUN)

test: setup for-tests
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: setup for-tests
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup for-tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

bench: setup
	$(PYTHON) -m benchmarks.rollout
	$(PYTHON) -m benchmarks.evaluate
	$(PYTHON) -m benchmarks.data
	$(PYTHON) -m benchmarks.sft

lock:
	.venv/bin/uv pip compile pyproject.toml --extra dev --python-version 3.12 --no-emit-index-url --no-annotate -q -o requirements.lock

clean:
	rm -rf .venv runs
