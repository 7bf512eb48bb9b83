# `make` lists what there is. Variables:
#   PYTHON       the Python (3.11 to 3.13) that makes .venv
#   TORCH        cpu: a CPU build of torch; keep: the torch that PYTHON's environment has; default: as .venv is, else cpu
#   TORCH_INDEX  URL of a package index that has CPU builds, where pip's own settings name none
#   ARGS         more keys for the quick start's commands
#   WORKERS      how many tests run at a time (2); 0: one, in pytest's own process
#   SYSTEM       no: don't install Debian's packages for the tests (Slurm, Chromium)
PYTHON ?= python3
PY := .venv/bin/python
TORCH ?=
TORCH_INDEX ?=
ARGS ?=
SYSTEM ?=
WORKERS ?= 2

# Threads that wait for work spin only shortly: on busy cores long spinning costs five times the time.
export GOMP_SPINCOUNT := 1000

METHODS := method=random,k_centers,lm,dilm
# fp32 where the processor only emulates bf16; asked after `install`.
FAST_BF16 := from dilm.distributed.device import multiplies_bf16, pick_device; exit(not multiplies_bf16(pick_device("auto")))
KEYS = experiment=quickstart $(shell $(PY) -c '$(FAST_BF16)' || echo precision=fp32)
RUNS := $(or $(patsubst root=%,%,$(filter root=%,$(ARGS))),runs)

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all system-packages lint format clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## .venv with the versions of requirements.lock (TORCH=keep: use the torch of the active Python)
	@$(PYTHON) tools/install.py --torch "$(TORCH)" --torch-index "$(TORCH_INDEX)"

quickstart: install ## the whole method on small models: 25 minutes on 2 cores, again seconds (ARGS="root=/elsewhere")
	$(PY) -m dilm.train $(KEYS) $(ARGS)
	$(PY) -m dilm.generate -m $(KEYS) $(METHODS) dpc=5,20 $(ARGS)
	$(PY) -m dilm.evaluate -m $(KEYS) $(METHODS) dpc=5,20 learner.freeze_encoder=true $(ARGS)
	$(PY) -m dilm.evaluate -m $(KEYS) $(METHODS) dpc=20 evaluate.n_datasets=3 n_seeds=1 $(ARGS)
	$(PY) tools/collect.py $(RUNS) --out report
	@echo
	@echo "The report is in report/, all artifacts are in $(RUNS)/. What to run next (first: source .venv/bin/activate):"
	@echo "  make test                                                                  check this machine"
	@echo "  python -m dilm.evaluate --help                                             its keys"
	@echo "  python -m dilm.train experiment=paper task=sst2                            the paper's settings, on a GPU"

test: install system-packages lint ## lint, and every test but the slow ones
	$(PY) -m pytest -n $(WORKERS) -m "not slow" -rs

test-all: install system-packages lint ## lint, and every test
	$(PY) -m pytest -n $(WORKERS) -rs

system-packages: ## Debian's Slurm and Chromium for the tests, where this user may install them (SYSTEM=no: leave them)
	@$(if $(filter no,$(SYSTEM)),echo "system-packages: left alone (SYSTEM=no)",$(PYTHON) tools/install.py --system)

lint: install ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install ## let ruff rewrite the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove .venv and caches; runs and reports stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find dilm tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
