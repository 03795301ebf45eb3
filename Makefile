# Two commands do everything on a fresh Debian machine: `make demo` and `make test`.
.PHONY: help setup demo clients-demo cluster-demo test coverage lint console-test screenshots fuzz soak torture bench matrix format wheel clean

PYTHON ?= python3
BIN := .venv/bin
RUN = $(BIN)/python
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is needed: Debian packages (as root, when missing) and the locked Python packages in .venv
	@PYTHON=$(PYTHON) scripts/setup

demo: setup ## Start the gateway on the connectors of this repository, call each, show a failure, stop
	@$(BIN)/python scripts/demo.py

clients-demo: setup ## Three clients with TLS: an old SDK, a new one and none; a key is changed under load
	@$(BIN)/python scripts/clients_demo.py

cluster-demo: setup ## Two gateways, PostgreSQL and HAProxy on this machine: kill one, restart both, nothing is lost
	@$(BIN)/python scripts/cluster_demo.py

test: setup ## Run the tests, and those of the cell a second time with sanitizers
	@PYTHON=$(PYTHON) scripts/setup tests
	$(RUN) -m pytest $(SPREAD) --ignore=tests/test_large.py
	$(BIN)/pytest tests/test_large.py # it measures memory, and has the machine for itself
	CELL_SANITIZED=1 $(BIN)/pytest -q $(SPREAD) tests/cell -k 'not sanitizers and not fuzz' # they are sanitized anyway

coverage: setup ## Run the tests, measured, and hold each package's branches to its floor in pyproject.toml
	rm -rf build/coverage
	$(MAKE) test RUN="$(BIN)/coverage run"
	$(BIN)/python scripts/floors.py

lint: setup ## ruff, mypy --strict, layers, docs, gcc's analyzer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py tests/test_docs.py
	! command -v gcc >/dev/null || runners/cell/build --check

console-test: setup ## The tests of the console in Chromium, which is installed where it is missing
	@PYTHON=$(PYTHON) scripts/setup browser
	$(BIN)/pytest -q tests/console

screenshots: setup ## The same, which also makes the pictures of docs/console.md anew
	@PYTHON=$(PYTHON) scripts/setup browser
	SCREENSHOTS=docs/images $(BIN)/pytest -q tests/console

fuzz: setup ## 100,000 requests that no client sends ([REQUESTS=100000]), then a minute of messages that no cell gets ([SECONDS=60])
	@PYTHON=$(PYTHON) scripts/setup tests
	$(BIN)/python bench/fuzz.py $(or $(REQUESTS),100000)
	tests/cell/fuzz $(or $(SECONDS),60)

soak: setup ## Good, bad and hostile calls together for half an hour ([MINUTES=30]); prints what is left of them (nothing)
	$(BIN)/python bench/soak.py $(or $(MINUTES),30)

torture: setup ## Kill, freeze and starve gateways with durable jobs ([SECONDS=90]): nothing may be lost
	@PYTHON=$(PYTHON) scripts/setup tests
	$(BIN)/python bench/torture.py $(SECONDS)

bench: setup ## Measure beside peers (half an hour; wrk, webhook and lighttpd from Debian), write docs/performance.md
	$(BIN)/python -m bench

matrix: setup ## Real libraries and a browser in each mode (fetches some 700 MB), write docs/matrix.md ([LIBRARIES="gevent polars"])
	@PYTHON=$(PYTHON) scripts/setup tests browser
	$(BIN)/pytest -q tests/test_matrix.py tests/test_matrix_libraries.py tests/test_matrix_browser.py
	$(BIN)/python bench/matrix.py $(LIBRARIES)

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup ## Build the wheel into dist/, for this platform (or GATEWAY_CELL_TARGET=aarch64-linux-musl)
	$(BIN)/uv build --wheel

clean: ## Remove what setup, tests and demo have made
	rm -rf .venv .gateway dist build .mypy_cache .ruff_cache
	rm -rf runners/cell/cell runners/cell/cell.sources runners/cell/.cell.*
