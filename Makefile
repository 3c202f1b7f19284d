# Everything a new user or CI needs. The environment is made once and made again only when its definition changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICKSTART := outputs/quickstart
SYNTHESIS := outputs/synthesis
WORKERS ?= 2
# bfloat16 pays only where the processor has it.
PRECISION ?= $(shell grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null && echo bf16 || echo no)

.PHONY: install quickstart synthesis test test-slow lint format docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "diffusers-ct needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/diffusers-ct prepare $(QUICKSTART)/dataset --phantoms 40 --dose 0.25 --dose 0.1 \
		--shape 8 256 256 --spacing 3 1.5 1.5 --validation-fraction 0.05 --test-fraction 0.15
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/train_ldct.py --dataset $(QUICKSTART)/dataset --output_dir $(QUICKSTART)/model \
		--training_data "40 diffusers-ct phantoms less validation and test" --training_data_licence Apache-2.0 \
		--max_train_steps 1500 --train_batch_size 2 --learning_rate 1e-3 --terminal_fraction 0.7 \
		--noise_gain 0.75 1.8 --validation_steps 250 --mixed_precision $(PRECISION) --resume_from_checkpoint latest
	$(BIN)/python examples/evaluate_ldct.py --dataset $(QUICKSTART)/dataset --model $(QUICKSTART)/model/pipeline \
		--metrics_jsonl $(QUICKSTART)/model/metrics.jsonl --output_dir $(QUICKSTART)

# Conditional synthesis on phantoms, and an independent judge of what it makes: about 90 minutes on 2 cores. A lesion fills
# some per mille of a volume: the second training has larger ones and weighs them, the third ends without weights, which
# overstate what they weigh.
SYNTHESIS_TRAINING = $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no examples/train_synthesis.py --phantoms 3000 --train_batch_size 16 --mixed_precision $(PRECISION) \
	--checkpointing_steps 300 --logging_steps 25 --validation_steps 300 --resume_from_checkpoint latest

synthesis: $(STAMP)
	$(SYNTHESIS_TRAINING) --output_dir $(SYNTHESIS)/anatomy --max_train_steps 3600 --learning_rate 8e-4 \
		--lr_warmup_steps 100 --lesion_radius 9 15
	$(SYNTHESIS_TRAINING) --output_dir $(SYNTHESIS)/lesions --init_from $(SYNTHESIS)/anatomy/pipeline \
		--max_train_steps 1800 --learning_rate 6e-4 --lr_warmup_steps 50 --lesion_radius 14 22 \
		--lesion_weight solid_nodule=3 ground_glass_nodule=12 cyst=10 metastasis=20 lytic=8
	$(SYNTHESIS_TRAINING) --output_dir $(SYNTHESIS)/model --init_from $(SYNTHESIS)/lesions/pipeline \
		--max_train_steps 800 --learning_rate 4e-4 --lr_warmup_steps 50 --lesion_radius 14 22
	$(BIN)/python examples/evaluate_synthesis.py --model $(SYNTHESIS)/model/pipeline --lesion_radius 14 22 \
		--output_dir $(SYNTHESIS)/evaluation --mixed_precision $(PRECISION) --samples 60 --guidance 1 1.5 2 3

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site; a broken link or name is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf $(VENV) outputs build dist .pytest_cache .mypy_cache .ruff_cache
