# Every target works from an empty clone: the first one makes .venv from pinned versions.
PYTHON ?= python3.11
BIN := .venv/bin
PACKAGES := recsys features training serving

.PHONY: nightly test check lint types layers unit fix notebooks faults clean

nightly: .venv/demo.stamp
	$(BIN)/recsys init demo --demo completejourney
	$(BIN)/recsys nightly -c demo/recsys.toml --as-of 2018-01-01T05:00:00Z --show-users 3

test: lint types layers unit

check: test

.venv/dev.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --progress-bar off -c constraints.txt -e '.[dev,demo,notebooks]'
	touch $@

.venv/demo.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv, some minutes the first time"
	$(BIN)/pip install --progress-bar off -c constraints.txt -e '.[demo]' | grep -vE '^(Requirement|  |Collecting|Using cached|Looking)' || true
	$(BIN)/recsys --version
	touch $@

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

layers: .venv/dev.stamp
	$(BIN)/lint-imports

# two at a time, each with one thread: on two cores that takes two thirds of the time of one with both
unit: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

fix: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the short faults run in `make test`; these are all of them: a thousand kills, ten million events, about ten minutes;
# what holds the page against the tests comes last, as they write it
faults: .venv/dev.stamp
	$(BIN)/python -m pytest -q -m "long or not long" tests/faults --ignore tests/faults/test_table.py --reliability docs/reliability.md
	$(BIN)/python -m pytest -q tests/faults/test_table.py

notebooks: .venv/dev.stamp
	$(BIN)/python notebooks/run.py

clean:
	rm -rf demo .venv build *.egg-info
