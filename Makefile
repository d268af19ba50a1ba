# Every target that needs Python builds .venv first, from constraints.txt; nothing has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.test-ready
comma := ,
QUALITY_READY := $(VENV)/.quality-ready

RECORDS ?= results/records
REPORT ?= results/report
TORTURE_JSON ?= results/torture.jsonl
# The tests of the store and the loader, which are to reach every branch of them without the help of others.
COVERED_BY := claims compact load safe_load store verify
# Extra words for the console scripts, e.g. make eval CKPT=... ARGS="--dry-run".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo eval watch report recommend test torture torture-table coverage mutation check bench bench-table tensorboard clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(TEST_READY) ## create .venv with everything that the other targets need

# Both install in one go: whoever tests needs no second round of pip.
$(READY) $(TEST_READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "make: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@echo "make: creating $(VENV) and installing the pinned packages (a minute or two; once)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[eval,demo$(if $(filter $(TEST_READY),$@),$(comma)gpu$(comma)test$(comma)browser)]'
	@touch $(READY) $@

$(QUALITY_READY): $(TEST_READY)
	@echo "make: installing coverage and mutmut (once)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,demo,gpu,test,browser,quality]'
	@touch $@

# The demo's network is tiny: on a busy machine a second thread is mostly waited for.
demo: export OMP_NUM_THREADS = 1
demo: $(READY) ## train a small network on real data, evaluate every epoch, build the report (2 minutes)
	@mkdir -p runs/digits
	@echo "make: training a ResNet-8 at 2, 4 and 8 bits on handwritten digits; its log: runs/digits/train.log" >&2
	@$(BIN)/qbw-eval train examples/digits.yaml --overwrite > runs/digits/train.log
	@echo "make: evaluating every epoch at 64 configurations, from every layer at 2 bits to every layer at 8" >&2
	@$(BIN)/qbw-eval run runs/digits/checkpoints --records '$(RECORDS)'
	@echo "make: building the report" >&2
	@$(BIN)/qbw-report build '$(RECORDS)' --out '$(REPORT)'
	@echo "Next: make tensorboard, or your own network: make eval CKPT=path/to/checkpoint.pt"

eval: $(READY) ## evaluate: CKPT=file|folder|glob [CONFIG=file.yaml] [N=16] [DEVICE=auto] [RECORDS=folder]
	@test -n '$(CKPT)' || { echo "make: say which checkpoint: make eval CKPT=path/to/checkpoint.pt" >&2; exit 2; }
	@$(BIN)/qbw-eval run '$(CKPT)' --records '$(RECORDS)' $(if $(CONFIG),--config '$(CONFIG)') \
		$(if $(N),--num-configs $(N)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

# At the lowest priority: where training computes on the same cores, it goes first.
watch: $(READY) ## evaluate checkpoints as training writes them: DIR=folder [N=16] [DEVICE=auto] [ARGS="--until-idle 10m"]
	@test -n '$(DIR)' || { echo "make: say which folder: make watch DIR=runs/digits/checkpoints" >&2; exit 2; }
	@nice -n 19 $(BIN)/qbw-eval watch '$(DIR)' --records '$(RECORDS)' $(if $(CONFIG),--config '$(CONFIG)') \
		$(if $(N),--num-configs $(N)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

report: $(READY) ## build statistics, figures and TensorBoard events: [RECORDS=folder] [REPORT=folder]
	@$(BIN)/qbw-report build '$(RECORDS)' --out '$(REPORT)' $(ARGS)

RECOMMENDED ?= results/recommended.json

recommend: $(READY) ## the best configuration within a budget, evaluated: BUDGET="avg_bitwidth<=4.5" CKPT=file [SERIES=name] [CONFIG=file.yaml]
	@test -n '$(BUDGET)' || { echo 'make: say how much: make recommend BUDGET="avg_bitwidth<=4.5" CKPT=path/to/checkpoint.pt' >&2; exit 2; }
	@test -n '$(CKPT)' || { echo 'make: say which checkpoint is evaluated: make recommend BUDGET="$(BUDGET)" CKPT=path/to/checkpoint.pt' >&2; exit 2; }
	@$(BIN)/qbw-report recommend '$(RECORDS)' $(foreach budget,$(BUDGET),--budget '$(budget)') --out '$(RECOMMENDED)' \
		$(if $(SERIES),--series '$(SERIES)') > /dev/null
	@$(BIN)/qbw-eval run '$(CKPT)' --records '$(RECORDS)' --configurations '$(RECOMMENDED)' $(if $(CONFIG),--config '$(CONFIG)') > /dev/null
	@$(BIN)/qbw-report build '$(RECORDS)' --out '$(REPORT)' > /dev/null
	@$(BIN)/qbw-report recommend '$(RECORDS)' $(foreach budget,$(BUDGET),--budget '$(budget)') $(if $(SERIES),--series '$(SERIES)')

tensorboard: $(READY) ## serve the report's TensorBoard files: [REPORT=folder]
	@$(BIN)/tensorboard --logdir '$(REPORT)/tensorboard' --samples_per_plugin images=1000,scalars=100000 $(ARGS)

# A file's tests stay together: they share what their fixtures have trained. Three processes, as many tests wait for others.
test: export OMP_NUM_THREADS = 1
test: $(TEST_READY) ## run the tests: [JOBS=3] [ARGS="-k words"]
	@echo "make: running the tests in $(or $(JOBS),3) processes (some ten minutes)" >&2
	@$(BIN)/python -m pytest -n $(or $(JOBS),3) --dist loadfile $(ARGS)

torture: $(TEST_READY) ## kill, race, fill, cut and damage the store, and read hostile checkpoints: [TORTURE_SCALE=1] [SEED=1] [JSON=file] [ARGS="-k races"]
	@echo "make: torturing the store and the loader (TORTURE_SCALE=1: about half an hour; power cuts and full disks need root)" >&2
	@TORTURE_SCALE=$(or $(TORTURE_SCALE),1) TORTURE_SEED=$(or $(SEED),1) TORTURE_JSON='$(or $(JSON),$(TORTURE_JSON))' \
		$(BIN)/python -m pytest tests/torture $(ARGS)

torture-table: $(TEST_READY) ## render what `make torture` measured into docs/reliability.md: [JSON=file]
	@$(BIN)/python tests/torture/table.py '$(or $(JSON),$(TORTURE_JSON))' docs/reliability.md

coverage: $(QUALITY_READY) ## branch coverage of the store and the loader by their own tests; fails under 100%
	@echo "make: measuring the branch coverage of the store and the loader (a minute or two)" >&2
	@$(BIN)/python -m coverage run -m pytest -q -p no:cacheprovider tests/schemas $(addprefix tests/stage/test_,$(addsuffix .py,$(COVERED_BY)))
	@$(BIN)/python -m coverage report

# Results are kept in mutants/ for what did not change; without ARGS all begins anew.
mutation: $(QUALITY_READY) ## change the store and the loader in every small way; fails if no test notices: [JOBS=1] [ARGS="qbw_eval.store.*"]
	@echo "make: testing with some thousand mutants (hours; one function: make mutation ARGS='*x_decode_part*')" >&2
	@$(if $(ARGS),,rm -rf mutants)
	@mkdir -p mutants
	@$(BIN)/mutmut run --max-children $(or $(JOBS),1) $(ARGS) > mutants/mutmut.log 2>&1 || { tail -n 40 mutants/mutmut.log >&2; exit 1; }
	@$(BIN)/python tests/mutants.py

check: $(TEST_READY) ## lint and type-check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(TEST_READY) ## measure, one line per figure: [DEVICE=cuda] [JSON=file] [QUICK=1: 3 minutes] [ARGS="--threads 2 --rounds 3"]
	@echo "make: measuring on an idle machine, please (the better part of an hour, on a GPU minutes; QUICK=1: under 3 minutes)" >&2
	@$(BIN)/python -m benchmarks.bench $(if $(DEVICE),--device '$(DEVICE)') $(if $(JSON),--json '$(JSON)') $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

bench-table: $(TEST_READY) ## render what `make bench JSON=file` measured into docs/performance.md: JSON=file
	@test -n '$(JSON)' || { echo "make: say which figures: make bench-table JSON=results/bench.json" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.table '$(JSON)' docs/performance.md

clean: ## remove .venv and caches; results and checkpoints stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
