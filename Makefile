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

.PHONY: install quickstart synthesis test test-slow lint format clean

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

# Conditional synthesis on phantoms, and an independent judge of what it makes: about 75 minutes on 2 cores. The second
# training weighs lesions, which fill a few per mille of a volume and are not learned in the time of the first.
synthesis: $(STAMP)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/train_synthesis.py --phantoms 3000 --output_dir $(SYNTHESIS)/anatomy --max_train_steps 3600 \
		--train_batch_size 16 --learning_rate 8e-4 --lr_warmup_steps 100 --mixed_precision $(PRECISION) \
		--checkpointing_steps 100 --logging_steps 25 --validation_steps 300 --resume_from_checkpoint latest
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/train_synthesis.py --phantoms 3000 --init_from $(SYNTHESIS)/anatomy/pipeline \
		--output_dir $(SYNTHESIS)/model --lesion_weight 20 --max_train_steps 900 --train_batch_size 16 \
		--learning_rate 6e-4 --lr_warmup_steps 50 --mixed_precision $(PRECISION) --checkpointing_steps 300 \
		--logging_steps 25 --validation_steps 300 --resume_from_checkpoint latest
	$(BIN)/python examples/evaluate_synthesis.py --model $(SYNTHESIS)/model/pipeline \
		--output_dir $(SYNTHESIS)/evaluation --mixed_precision $(PRECISION)

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

clean:
	rm -rf $(VENV) outputs build dist .pytest_cache .mypy_cache .ruff_cache
