# make demo   the slepton contour from Pythia events, into out/sleptons
# make test   the whole test suite
# make check  format, lint, types, layers
# make bench  timings and evaluations to accuracy
# make bench-levelset  ours, other packages and baselines on all problems: hours to days; goes on where it stopped
# make lock   write constraints.txt anew
#
# Each installs what it needs into .venv first; a second call finds it there.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := 2.13.0
PYTEST_ARGS ?=
JOBS ?= 2
SEEDS ?= 10

.PHONY: demo test check bench bench-levelset lock
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-all
	@$(BIN)/excursion example sleptons --out out/sleptons

# One thread per process: two processes with two threads each are slower on two cores.
test: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	@scripts/check

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m benchmarks

bench-levelset: $(VENV)/.installed-dev
	@bash benchmarks/suite/peers/setup.sh
	@$(BIN)/python -m benchmarks.suite.run --methods excursion,peers,forest,sobol,grid --seeds $(SEEDS) --jobs $(JOBS)
	@$(BIN)/python -m benchmarks.suite.run --methods criteria --batches 5 --seeds $(SEEDS) --jobs $(JOBS)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suite.hartmann --seeds $(SEEDS) \
		--out benchmarks/results/suite/hartmann6-210.json
	@$(BIN)/python -m benchmarks.suite.floor --jobs $(JOBS) --out benchmarks/results/floor.json
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.transform --jobs $(JOBS)
	@$(BIN)/python -m benchmarks.suite.run --methods "aepsych[log],botorch[log],trieste[log],learnernd[log]" --batches 5 \
		--problems cliff,kinematic_step,noisy_CLs,mono_sbb --seeds $(SEEDS) --jobs $(JOBS)
	@$(BIN)/python -m benchmarks.suite.report --docs docs

$(BIN)/python:
	@scripts/find-python -m venv $(VENV)

$(VENV)/.installed-all: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) install --quiet -c constraints.txt -e ".[all]"
	@touch $@

# dev includes all.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed-all $@

lock:
	@scripts/lock $(TORCH)
