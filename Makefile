# `make demo` and `make test` need nothing but Python 3.11, 3.12 or 3.13: they make .venv and install into it by themselves.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do command -v python$$v && break; done || echo python3)
VENV ?= .venv
BIN = $(VENV)/bin

# Where it is set, as in some images, each process compiles all of JAX anew: four seconds of its processor's time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test thorough processors peers lint release seeds faults clusters browser site site-check first-hour clothing ablations clean

demo: $(VENV)/.installed
	$(BIN)/maejax demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

# All tests, also those marked slow, but for the clusters of `make clusters`: hours on 2 cores.
thorough: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'slow or not slow' --ignore tests/clusters

# The same as other processors compute it, each as wide as this one allows, then beside two busy loops: hours on 2 cores.
# XLA_FLAGS turns off the quick compiler of tests/conftest.py.
ISAS = SSE4_2 $(shell grep -qw avx2 /proc/cpuinfo && echo AVX2; grep -qw avx512f /proc/cpuinfo && echo AVX512)
processors: $(VENV)/.installed-test
	for isa in $(ISAS); do XLA_FLAGS=--xla_cpu_max_isa=$$isa $(BIN)/python -m pytest -n auto --dist loadfile || exit; done
	(while :; do :; done) & first=$$!; (while :; do :; done) & trap "kill $$first $$!" EXIT INT TERM; \
	$(BIN)/python -m pytest -n auto --dist loadfile

# The same against PyTorch, timm and transformers themselves.
peers: $(VENV)/.installed-peers
	$(BIN)/python -m pytest -n auto --dist loadfile tests/weights/test_peers.py tests/weights/test_encoders.py \
		tests/weights/test_containers.py tests/data/test_policies.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# Wheel and sdist in dist/, checked, installed and run in clean environments of all Pythons that are here: ten minutes.
release: $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) build twine
	PYTHON=$(BIN)/python scripts/release

# The table of docs/demo.md: the demo over three seeds, half an hour on 2 cores.
seeds: $(VENV)/.installed
	for seed in 0 1 2; do $(BIN)/maejax demo --seed $$seed --name demo-$$seed || exit; done
	$(BIN)/python benchmarks/demo_seeds.py runs/demo-0 runs/demo-1 runs/demo-2

# The table of docs/faults.md, tried: 24 kills, damaged checkpoints, full disks, processes that die.
faults: $(VENV)/.installed-test
	MAEJAX_KILLS=24 $(BIN)/python -m pytest -v -s -m 'slow or not slow' tests/training tests/distributed \
		tests/storage/test_mirror.py tests/tasks/test_diagnosis.py tests/tasks/test_trackers.py tests/scripts/test_pod.py

# docs/clusters.md, tried on a SLURM cluster of two nodes and a Ray cluster on this machine, for root on Debian or Ubuntu: ten
# minutes.
clusters: $(VENV)/.installed-test
	command -v slurmctld > /dev/null || apt-get install --yes slurm-wlm munge
	$(BIN)/python -m pip install $(PIP) --editable '.[test,ray]'
	$(BIN)/python -m pytest -v -s -m 'slow or not slow' tests/clusters

# The playground in a real browser, for root on Debian or Ubuntu: some minutes.
browser: $(VENV)/.installed-test
	command -v chromium chromium-browser google-chrome > /dev/null || apt-get install --yes chromium
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) --editable '.[test,browser]'
	$(BIN)/python -m pytest -v -s -m 'slow or not slow' tests/playground

# The documentation as a site, in site/; `python -m http.server --directory site` shows it. Warnings are errors.
site: $(VENV)/.installed-docs
	$(BIN)/python scripts/site.py site

# Every command and snippet of the pages, shortened, and the site in a real browser, for root on Debian or Ubuntu: half an hour.
site-check: site $(VENV)/.installed-peers
	command -v chromium chromium-browser google-chrome > /dev/null || apt-get install --yes chromium
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) --editable '.[test,browser]'
	$(BIN)/python -m pytest -v -s -m 'slow or not slow' tests/test_snippets.py tests/test_site.py

# What a newcomer does, against the built wheel in a clean environment, with the seconds of each step: ten minutes.
first-hour: $(VENV)/bin/python
	$(BIN)/python tests/first_hour.py

# The table of docs/clothing.md: pre-trained against untrained and from scratch on real photos, within an hour on 2 cores.
# DATA names other photos: a tar, or a folder, with train, validation and test in it, each with a folder per class.
DATA ?= ../shared/data/clothing-small.tar
clothing: $(VENV)/.installed
	$(BIN)/python benchmarks/clothing.py $(DATA)

# The table of docs/ablations.md: the paper's ablations in miniature, on photos, some hours on 2 cores; it goes on where
# it was stopped.
PHOTOS ?= ../shared/data/clothing-by-sender.tar
ablations: $(VENV)/.installed
	$(BIN)/python benchmarks/ablations.py $(PHOTOS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	echo "maejax needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1);" \
	"install one of them, or name it: make PYTHON=/usr/bin/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Python compiles what is imported when it is imported; pip would compile all that is installed.
PIP = --quiet --disable-pip-version-check --no-compile
# One file of tested versions for each Python; a second call installs nothing.
CONSTRAINTS = constraints/python$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt

$(VENV)/.installed: pyproject.toml constraints/*.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) --editable '.[serve]'
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints/*.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) --editable '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-test
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) --editable '.[test,docs]'
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-test
	$(BIN)/python -m pip install $(PIP) --constraint $(CONSTRAINTS) --editable '.[test,interop]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache dist site
