# One command each; `make help` lists them. Everything runs in .venv, which tools/environment.py makes from requirements.lock.
PYTHON ?= python3
CHAPTERS ?=
SCALE ?= cpu
SEED ?= 0
SEEDS ?= 5
SCHEDULER ?=
PORT ?= 8000

# Recipes that need an environment begin with one of these: the path of its Python, or one line that says why there is none.
BOOK = $$($(PYTHON) tools/environment.py book || echo false)
CHAPTER = $$($(PYTHON) tools/environment.py book chapters || echo false)
TEST = $$($(PYTHON) tools/environment.py book chapters test || echo false)
DEV = $$($(PYTHON) tools/environment.py book chapters test dev || echo false)
OPTIONS = $(if $(CHAPTERS),--chapters $(CHAPTERS)) $(if $(SCHEDULER),--scheduler $(SCHEDULER))

.DEFAULT_GOAL := help
.PHONY: help book serve test lint lab execute evidence bench mutants lock clean

help: ## list the targets
	@echo "Scientific Spaces, executed"; echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo; echo "  CHAPTERS=\"f-gan random-angles\" restricts execute, evidence and mutants; SCALE=smoke|cpu|gpu, SEED=0, SEEDS=5,"
	@echo "  SCHEDULER=tcp://host:8786 runs on a Dask cluster; PORT=8000 for serve; PYTHON=python3.12 chooses the interpreter."

book: ## build the HTML from the committed notebooks (nothing is executed) and print the file to open
	@$(BOOK) -m kexue.book.site build

serve: book ## build and serve the book on http://127.0.0.1:$(PORT)
	@echo "http://127.0.0.1:$(PORT) (stop with Ctrl-C)"; $(BOOK) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: ## lint, unit tests with coverage, static checks, nbval and papermill over every chapter, site tests in a browser
	@$(TEST) tools/verify.py

lint: ## ruff over code and notebooks
	@py=$(TEST); $$py -m ruff check . && $$py -m ruff format --check .

lab: ## open JupyterLab on the chapters
	@$(DEV) -m jupyterlab --notebook-dir=chapters

execute: ## run chapters again in place (SCALE=cpu SEED=0), or elsewhere for another scale or seed
	@$(CHAPTER) -m kexue.book execute --scale $(SCALE) --seed $(SEED) $(OPTIONS) $(if $(filter cpu-0,$(SCALE)-$(SEED)),,--check)

evidence: ## run every chapter over SEEDS seeds at SCALE and write data/evidence.json
	@$(CHAPTER) -m kexue.book evidence --seeds $(SEEDS) --scales $(SCALE) $(OPTIONS)

bench: ## measure the hot paths against their peers and write data/benchmarks.json
	@$(TEST) -m benchmarks

mutants: ## plant faults in the library and count which are caught by unit tests and by claims (long)
	@$(TEST) tools/mutants.py $(CHAPTERS)

lock: ## resolve all dependencies anew: requirements.lock, environment.yml, requirements-colab.txt
	@$(DEV) tools/lock.py write

clean: ## remove everything that can be made again, the environment included
	rm -rf _build .venv
