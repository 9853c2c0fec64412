# The doors of this repository. Each prints what it does; all are idempotent.
#   make serve   set up what is missing and serve the built-in model on http://127.0.0.1:8000
#   make test    set up everything and run all tests
#   make setup   only the set-up for serving      make lint    ruff, mypy, layers
#   make bench   the benchmarks                   make bars    the long checks, one line each

PYTHON ?= python3
EXTRAS ?=# such as EXTRAS=gguf or EXTRAS=redis,otel
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
NEEDS  := pyproject.toml constraints.txt

.PHONY: setup serve test lint bench bars clean
.DEFAULT_GOAL := serve

$(VENV)/python-is-fine:
	@command -v $(PYTHON) >/dev/null || { echo "llmhost needs Python 3.11 or newer; there is no '$(PYTHON)' here. Install it, or say: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llmhost needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V). Say: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "This Python can't make virtual environments. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "> making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# What serving needs: no compiler, no GGUF.
$(VENV)/ready-to-serve: $(VENV)/python-is-fine $(NEEDS)
	@echo "> installing llmhost and the torch engine into $(VENV)"
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@$(BIN)/python -m compileall -q src  # where Python is told to write no bytecode, each start would compile all
	@touch $@

# What the tests need on top: development tools, and the engine for GGUF files where it can be built.
$(VENV)/ready-to-test: $(VENV)/ready-to-serve
	@echo "> installing the tools of the tests"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@if $(BIN)/python -c 'import llama_cpp' 2>/dev/null; then :; \
	elif command -v c++ >/dev/null && command -v cmake >/dev/null; then \
		echo "> building llama-cpp-python, once; this takes up to half an hour"; \
		$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,gguf]'; \
	else echo "> no C++ compiler or cmake: the tests of GGUF files are skipped"; fi
	@touch $@

setup: $(VENV)/ready-to-serve
ifneq (,$(findstring gguf,$(EXTRAS)))
	@command -v c++ >/dev/null && command -v cmake >/dev/null || { echo "The extra 'gguf' is built from source and needs a C++ compiler and cmake. On Debian: apt-get install g++ cmake"; exit 1; }
	@echo "> building llama-cpp-python, which takes minutes"
endif
ifneq (,$(EXTRAS))
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
endif
	@echo "> $(VENV) is ready: $(BIN)/llmhost --help"

serve: $(VENV)/ready-to-serve
	@exec $(BIN)/llmhost serve $(ARGS)

test: $(VENV)/ready-to-test
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/ready-to-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(VENV)/ready-to-test
	@for file in tests/bench/bench_*.py; do echo "> $$file"; $(BIN)/python $$file || exit 1; done

bars: $(VENV)/ready-to-test
	@echo "> searching for examples that break a property"
	@$(BIN)/python -m pytest --no-header -q --hypothesis-profile=searching tests/unit
	@echo "> kills, crowds, abuse, start-up"
	@$(BIN)/python -m pytest -m bars --no-header -q -rA tests/bars $(ARGS)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
