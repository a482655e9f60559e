# Everything runs in a virtual environment of its own (.venv); a fresh machine needs Python >= 3.10 and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick system-packages lint format serve bench fuzz clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.demo ## Anonymise the sample photo with the embedded server: out/demo/before_after.png
	$(BIN)/visard demo --output out/demo

# Much of the time goes into waiting for servers. Each process starts those that its files need: 2 GB of memory.
TEST_PROCESSES := 2

test: $(VENV)/.installed system-packages ## Run the tests, the real Triton in them
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

# The packages whose tests are fast, and of the others the files that need no server.
QUICK := tests/preprocess tests/cli/test_declared.py tests/docs/test_readme.py tests/client/test_wire.py \
	tests/client/test_public_names.py tests/evaluation/test_evaluation_parts.py tests/folder/test_folder_parts.py \
	tests/web/test_web_parts.py tests/export/test_networks.py tests/training/test_training_data.py

test-quick: $(VENV)/.installed ## Run the tests that answer within two minutes, without apt packages
	$(BIN)/python -m pytest -q $(QUICK) -m "not (nginx or promtool or browser or ray or slow)"

# The gateway is tested with the nginx that runs it, its alert rules with Prometheus' own tool, the page with two browsers.
system-packages:
	@missing=; for tool in nginx promtool envsubst openssl chromium firefox-esr curl; do command -v $$tool >/dev/null || missing=1; done; \
	[ -z "$$missing" ] && [ -e /usr/lib/nginx/modules/ngx_http_js_module.so ] || { \
		echo "The tests need nginx, promtool, Chromium and Firefox: installing them with apt"; \
		$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends \
			nginx libnginx-mod-http-js prometheus gettext-base openssl chromium firefox-esr curl; }

lint: $(VENV)/.installed ## Check style, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(VENV)/.demo ## Serve the demo models on 127.0.0.1:8001 until Ctrl-C
	$(BIN)/visard serve

bench: $(VENV)/.installed ## Measure alignment, stages and load against their ceilings (an hour)
	$(BIN)/python -m visard_benchmarks.align
	$(BIN)/python -m visard_benchmarks.stages
	$(BIN)/python -m visard_benchmarks.load

# For Python 3.11 and newer on Linux; ten minutes for each target: make fuzz FUZZ_SECONDS=600
FUZZ_SECONDS ?= 20
fuzz: $(VENV)/.installed ## Throw mutated bytes at decoder, forms and answers for a minute; findings are left in out/fuzz
	$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=3,<4'
	@mkdir -p out/fuzz
	cd out/fuzz && for target in decoder body wire; do \
		$(CURDIR)/$(BIN)/python -m visard_testing.fuzz $$target $(FUZZ_SECONDS) || exit 1; done

clean: ## Remove what the other targets made
	rm -rf $(VENV) out

# What using Visard needs, which is little, and what working on it needs, which is much.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[serve]'
	@touch $@

# Two steps, so that pip settles the torch build first: see README for the small CPU build.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[serve,export,train,evaluate,naturalness,folder,ray,video,web,bench,dev]' '$(TORCH)'
	@touch $@ $(VENV)/.demo

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Visard needs Python 3.10 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv is missing: sudo apt-get install python3-venv"; exit 1; }
