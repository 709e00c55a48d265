# `make demo` and `make test` work in a fresh clone: the first target that needs it sets up .venv, and again only when
# pyproject.toml or constraints.txt change. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
# Test processes at once, each with one thread for arithmetic.
JOBS ?= 2
# More for pytest, mkdocs or the painter, e.g. make test ARGS="-k pipeline -x", make docs ARGS=serve
ARGS ?=
# Which draws in `make app`: a run folder, or a model of the Hub; by default what the command finds in the checkout.
MODEL ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
TEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo app test test-all coverage lint docs notebooks bench card clean

help:
	@echo "make demo      first images within a minute; then a dataset, fine-tuning, images from unseen masks, an"
	@echo "               evaluation: three to six minutes on two cores"
	@echo "make app       paint masks in the browser, photos drawn by MODEL (default: what comes with the checkout)"
	@echo "make test      the quick tests, at most ten minutes"
	@echo "make test-all  the slow tests, and lint"
	@echo "make coverage  all tests, and how many lines of the package they run: an hour"
	@echo "make lint      ruff, codespell with the words to avoid, mypy, schemas of the workflows"
	@echo "make docs      the docs as pages, into site/; with ARGS=serve to read them while writing"
	@echo "make notebooks run the notebooks and write them with their outputs"
	@echo "make bench     what is in benchmarks/, its studies aside"
	@echo "make card      model_card.md from the card of checkpoints/camvid128"
	@echo "make clean     remove caches and build results; .venv and your runs stay"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: Python 3.10 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv: some minutes the first time, mostly PyTorch."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

app: $(INSTALLED)
	$(BIN)/semseg-diffusers app $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(INSTALLED)
	$(TEST) -m "not slow and not gpu" $(ARGS)

test-all: lint
	$(TEST) -m "slow and not gpu" $(ARGS)

# Apart from the tests: until Python 3.12 it makes code that calls much, such as the compiler's, twice as slow.
coverage: $(INSTALLED)
	$(TEST) -m "not gpu" --cov --cov-report= $(ARGS)
	@echo "lines of the package that the tests run: $$($(BIN)/python -m coverage report --format=total) %"

# Paths that are checked against the words and phrases to avoid; keys of records ("wishes") are exempt.
PLAIN := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md CODE_OF_CONDUCT.md .github benchmarks docs/*.md docs/tutorials \
	docs/how_to docs/reference docs/hooks docs/results/*.md examples notebooks/*.md notebooks/*.py semseg_diffusers tests \
	train_accelerate.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell -D .codespell/words.txt --ignore-regex '<!-- begin' $(PLAIN)
	! git grep -nEi -f .codespell/phrases.txt -- $(PLAIN)
	$(BIN)/codespell README.md docs/*.md docs/*/*.md semseg_diffusers --skip '*.js,*.html,*.j2'
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Material's note on what follows MkDocs is no warning of ours.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(or $(ARGS),build)

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/run.py

bench: $(INSTALLED)
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "error: there is nothing in benchmarks/ yet." >&2; exit 1; }
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

card:
	sed -E 's#\]\((samples|extremes|results)#](checkpoints/camvid128/\1#' checkpoints/camvid128/README.md > model_card.md

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
