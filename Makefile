# Everything a reader calls. `make help` lists it. Needs GNU make and Python 3.11 or 3.12.
SCALE ?= quick
WORKERS ?= 0
SEEDS ?=
STALE ?=
DEVICE ?=
SAMPLE ?=
LAB ?=
SCHEDULER ?=
export FFR_STALE := $(STALE)
export FFR_SCHEDULER := $(SCHEDULER)

# `make test PY=python` uses an environment of your own and sets nothing up.
ifeq ($(origin PY),undefined)
PY := .venv/bin/python
ENVIRONMENT := .venv/installed
endif
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
SPREAD := -n logical --maxprocesses 4 --dist loadfile
NOTEBOOKS := $(wildcard notebooks/00_start_here.ipynb notebooks/explore.ipynb notebooks/lessons)

.DEFAULT_GOAL := help
.PHONY: help reproduce replicate test lab tables figures check plan data clean site

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12
	@echo "Variables: SCALE=quick|laptop|paper, WORKERS=n (0: one a core), SEEDS=n, STALE=rerun, DEVICE=cpu|cuda,"
	@echo "  PY=python, PYTHON=python3.x,"
	@echo "  SCHEDULER=tcp://host:8786 (runs on a Dask cluster, see docs/cluster.md)"

# Done once; again only when the lock file changes. The .pth file makes `import ffrlib` work in every notebook.
.venv/installed: requirements.lock
	@for python in $(or $(PYTHON),python3.11 python3.12 python3 python); do \
	    if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or 3.12 is needed; tried $(or $(PYTHON),python3.11 python3.12 python3 python). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "Setting up .venv (once, a few minutes) ..."; \
	test -x .venv/bin/python || "$$python" -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'ffrlib.pth').write_text('$(CURDIR)\n')"
	@touch $@

reproduce: $(ENVIRONMENT)  ## run what has no record yet, make every table and figure anew (SCALE, WORKERS, SEEDS)
	@$(PY) -m ffrlib.notebooks reproduce --scale $(SCALE) --workers $(WORKERS) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(DEVICE),--device $(DEVICE))

replicate: $(ENVIRONMENT)  ## train the quick scale again from nothing and compare every record with the committed one
	@$(PY) -m ffrlib.notebooks replicate

# One thread for each process: pytest and the kernels start several, and threads beyond the cores slow all down.
test: export OMP_NUM_THREADS ?= 1
test: $(ENVIRONMENT)  ## unit tests, the notebooks, the published tables, and a replication of a sample
	@$(PY) -m pytest -q $(SPREAD)
	@$(if $(NOTEBOOKS),$(PY) -m pytest -q $(SPREAD) -p no:cacheprovider --nbval-lax --nbval-current-env \
	    --nbval-kernel-startup-timeout 600 $(NOTEBOOKS))
	@$(PY) -m ffrlib.check
	@$(if $(filter never,$(SAMPLE)),,$(PY) -m ffrlib.notebooks sample)

# The whole repository is the root: notebooks link to docs and results, which lie beside their folder.
lab: $(ENVIRONMENT)  ## JupyterLab at the start notebook (LAB=--allow-root and the like go to it)
	@$(PY) -m jupyterlab $(LAB) --ServerApp.root_dir="$(CURDIR)" notebooks/00_start_here.ipynb

tables: $(ENVIRONMENT)  ## every table and figure from the records alone, nothing is trained (SCALE)
	@$(PY) -m ffrlib.notebooks tables --scale $(SCALE)

figures: $(ENVIRONMENT)  ## README's picture and that of the latencies (those of the experiments: make tables)
	@$(PY) -m ffrlib.pictures

check: $(ENVIRONMENT)  ## are all records valid, do all tables come out the same?
	@$(PY) -m ffrlib.check

plan: $(ENVIRONMENT)  ## what would run, and how many minutes it takes (SCALE, WORKERS, DEVICE, SEEDS, STALE)
	@$(PY) -m ffrlib.run --plan --scale $(SCALE) --workers $(WORKERS) $(if $(DEVICE),--device $(DEVICE)) $(if $(SEEDS),--seeds $(SEEDS))

data: $(ENVIRONMENT)  ## fetch CIFAR-10 (170 MB) into data/raw; other sets: python -m ffrlib.fetch NAME
	@$(PY) -m ffrlib.fetch cifar10

clean:  ## remove build/, caches, checkpoints and weights kept for cuts (not the records, the environment, the data)
	@rm -rf build .pytest_cache .ruff_cache .hypothesis results/cache/checkpoints results/cache/weights results/cache/locks
	@find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

# The site's own packages go into the same .venv; the versions of requirements.lock stay as they are.
.venv/installed-site: requirements-site.lock .venv/installed
	@.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements-site.lock -c requirements.lock
	@touch $@

site: $(ENVIRONMENT) $(if $(ENVIRONMENT),.venv/installed-site)  ## all of this as pages to read offline, in build/site
	@$(PY) site/build.py
