# Everything runs in its own environment, .venv, made here from Python 3.11 (or $(PYTHON)) alone.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: $(STAMP)  ## train a small recogniser on real speech (5 to 10 minutes on 2 cores) and show what it learned
	$(RUN) scripts/demo.py --output demo_output

.PHONY: pretrained
pretrained: $(STAMP)  ## from Whisper tiny.en to a sparse, monotonic recogniser of free speech (12 to 20 minutes on 2 cores)
	$(RUN) -m experiments.from_whisper.road --output pretrained_output

.PHONY: table
table: $(STAMP)  ## the demo's model with softmax, sparsemax, entmax15 and entmax, same budget (about 40 minutes)
	$(RUN) -m experiments.transforms_on_prompts

# Real maps come from the demo's model, if make demo has made it.
TRAINED = $(if $(wildcard demo_output/run/best),--checkpoint demo_output/run/best)

# WHISPER="FOLDER CHECKPOINT CORPUS" adds the comparison with transformers' Whisper.
.PHONY: bench
bench: $(STAMP)  ## speed of attention, alignment, training step and decoding against their peers (about 15 minutes)
	$(RUN) benchmarks/entmax_speed.py $(TRAINED)
	$(RUN) benchmarks/attention_speed.py $(TRAINED) --plot benchmarks/pictures/attention_speed.png
	$(RUN) benchmarks/alignment_speed.py
	$(RUN) benchmarks/training_step.py
	$(RUN) benchmarks/decoding_speed.py
	$(if $(WHISPER),$(RUN) benchmarks/whisper_speed.py $(WHISPER))

.PHONY: test
test: $(STAMP)  ## run every test
	$(RUN) tests/support/fetch_transformers_tests.py
	$(RUN) -m pytest -n 2 --dist worksteal

.PHONY: check
check: $(STAMP)  ## ruff, mypy, import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config setup.cfg

.PHONY: clean
clean:  ## remove the environment and what runs have written
	rm -rf $(VENV) demo_output pretrained_output runs build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(STAMP): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -q -c constraints.txt -e '.[train,plots,phonemes,wsj,test]'
	@touch $@
