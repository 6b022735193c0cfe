# Same verbs everywhere: install, demo, serve, test, lint, bench. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JS := tests/js

.DEFAULT_GOAL := help
.PHONY: help install demo serve render test gpu-test lint bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## make .venv with wanbox and its development tools

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("wanbox needs Python 3.11 or newer; try make PYTHON=python3.12 install")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The JS client is only needed by the contract tests. Without npm they are skipped here and fail in CI.
$(JS)/node_modules/.installed: $(JS)/package.json $(JS)/package-lock.json
	@if command -v npm >/dev/null; then cd $(JS) && npm ci --no-audit --no-fund --loglevel=error && touch node_modules/.installed; \
	else echo "npm not found: the JS contract tests will be skipped"; fi

demo: install ## one real job through server, queue, worker and encoder; prints the path of the MP4
	@$(BIN)/python scripts/demo.py

serve: install ## the server on http://127.0.0.1:8000, data in ./data
	$(BIN)/wanbox serve

render: install ## offline rendering: make render JOBS=jobs.jsonl OUT=out/batch
	$(BIN)/wanbox render $(JOBS) --out $(or $(OUT),out/render)

# Two processes take file after file in the order of tests/conftest.py. One thread each, and for the servers that they
# start: more would only wait for each other.
test: install $(JS)/node_modules/.installed ## all tests that run without a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not gpu' -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

gpu-test: install ## the tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

lint: install ## ruff (rules and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: install ## wanbox against diffusers: the same work in one process, CPU seconds
	$(BIN)/python scripts/bench.py $(ARGS)

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) $(JS)/node_modules build dist out .pytest_cache .ruff_cache .hypothesis
	find . -name '*.egg-info' -not -path './.git/*' -prune -exec rm -rf {} +
