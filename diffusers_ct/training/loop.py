"""The one training loop: an Accelerate run over numbered items, exact to resume and equal on any number of processes."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState, skip_first_batches
from accelerate.utils import (
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from .checkpoints import find_checkpoint, read_state, save_checkpoint
from .compute_record import ComputeRecord
from .config import TrainingConfig
from .lr_schedules import make_lr_scheduler
from .objectives import Objective


class TrainingError(RuntimeError):
    """The run cannot go on; the last checkpoint is kept."""


@dataclass(frozen=True)
class Validation:
    """What a validation found: numbers by name, and (height, width[, 3]) uint8 pictures by name."""

    metrics: Mapping[str, float]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: steps done, mean loss of the last logged steps, last validation.

    Fewer steps than asked for mean that `max_train_minutes` ended it; a loss of nan, that nothing was left to do.
    """

    step: int
    loss: float
    validation: Validation | None


def train(
    config: TrainingConfig,
    *,
    model: nn.Module,
    make_objective: Callable[[nn.Module], Objective],
    dataset: torch.utils.data.Dataset,
    validate: Callable[[nn.Module, int], Validation] | None = None,
    save_pretrained: Callable[[nn.Module], None] | None = None,
) -> TrainingResult:
    """Trains a model.

    Items are taken in order and not shuffled: the dataset draws them itself, from its seed, its epoch (`set_epoch`,
    where it has one) and the item's number, as `PatchDataset` does. Timestep and noise of an item come from
    (seed, epoch, number) too. So a run does not depend on processes, workers or accumulation, and a resumed run is
    the one that was never stopped, if its data and objective are: of what the caller gives, the shapes of the network and
    the number of items are checked.

    Args:
        config: settings; written to `output_dir/training_config.json`, and the time taken to compute.json beside it.
        model: trained in place; its initial weights are the caller's, who seeds before making it.
        make_objective: gets the prepared model, returns the objective.
        dataset: map-style, of dicts of tensors.
        validate: gets the averaged model in eval mode and the step; called on the main process.
        save_pretrained: gets the averaged model when training has ended; called on the main process.

    Raises:
        ValueError: for settings that do not fit the machine, the dataset or the checkpoint, before any work.
        FileNotFoundError: if the checkpoint to resume from is not there.
        TrainingError: if the loss or its gradient is not finite.
    """
    started = time.monotonic()
    accelerator = _make_accelerator(config)
    batch_size = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    length = len(dataset)  # type: ignore[arg-type]
    if length < batch_size:
        raise ValueError(
            f"The dataset has {length} items an epoch, fewer than one step takes ({batch_size} = batch x accumulation "
            "x processes): ask for more patches an epoch or smaller batches."
        )
    run = {
        "seed": config.seed,
        "train_batch_size": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_processes": accelerator.num_processes,
        "dataset_length": length,
        "use_ema": config.use_ema,
        "noise_schedule": config.noise_schedule,
        "network": _outline(model),
    }
    checkpoint = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
    state = {"step": 0, "epoch": 0, "batches_done": 0}
    if checkpoint is not None:
        state = read_state(checkpoint, run, config.max_train_steps)
    set_seed(config.seed)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()  # type: ignore[operator]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    lr_scheduler = make_lr_scheduler(
        config.lr_scheduler,
        optimizer,
        warmup_steps=config.lr_warmup_steps,
        total_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        cycle_mult=config.lr_cycle_mult,
    )
    accelerator.wait_for_everyone()  # every process has found the same checkpoint before one of them writes
    loader = torch.utils.data.DataLoader(
        _Numbered(dataset), config.train_batch_size, drop_last=True, num_workers=config.dataloader_num_workers
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    ema = EMAModel(accelerator.unwrap_model(model).parameters(), decay=config.ema_decay) if config.use_ema else None
    if ema is not None:
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    accelerator.register_for_checkpointing(lr_scheduler)  # stepped here, once per optimizer step on every process
    objective = make_objective(model)

    step, epoch, batches_done = state["step"], state["epoch"], state["batches_done"]
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        if ema is not None:
            ema.to(accelerator.device)  # accelerate loads registered objects onto the CPU
        accelerator.print(f"Resuming at step {step} from {checkpoint.name}.")
    if accelerator.is_main_process:
        config.save()
    log = _Log(accelerator, config, step)
    compute = ComputeRecord(config.output_dir, accelerator, started=started, resumed=checkpoint is not None)

    validation: Validation | None = None
    validated_at = -1  # on every process: only the main one holds the result, and all must meet equally often
    bar = tqdm(
        total=config.max_train_steps,
        initial=step,
        desc="training",
        disable=not accelerator.is_main_process,
        mininterval=1,
    )
    batches_per_epoch = len(loader) - len(loader) % config.gradient_accumulation_steps
    model.train()
    over = step == config.max_train_steps
    while not over:
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        batches = skip_first_batches(loader, batches_done) if batches_done else loader
        for batch in islice(batches, batches_per_epoch - batches_done):
            batches_done += 1
            with accelerator.accumulate(model):
                losses = objective(batch, _item_seeds(config.seed, epoch, batch.pop("item")))
                if not torch.isfinite(losses["loss"]):
                    raise _not_finite("loss", losses["loss"], step + 1)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                    # Clipping by a norm that is not finite ruins every weight; the fp16 scaler skips such a step itself.
                    if accelerator.scaler is None and not torch.isfinite(norm):
                        raise _not_finite("gradient norm", norm, step + 1)
                optimizer.step()
                optimizer.zero_grad()
            log.add(losses)
            if not accelerator.sync_gradients:
                continue
            step += 1
            lr_scheduler.step()
            if ema is not None:
                ema.step(accelerator.unwrap_model(model).parameters())
            bar.update()
            over = step == config.max_train_steps or _out_of_time(config, started)
            if step % config.logging_steps == 0 or over:
                loss = log.write(step, {"lr": lr_scheduler.get_last_lr()[0], "grad_norm": float(norm)})
                bar.set_postfix(loss=f"{loss:.4f}")
            if step % config.checkpointing_steps == 0 or over:
                state = {"step": step, "epoch": epoch, "batches_done": batches_done, **run}
                save_checkpoint(accelerator, config.output_dir, state, config.checkpoints_total_limit)
                compute.write(step)
            if validate is not None and config.validation_steps and step % config.validation_steps == 0:
                validation = _run_validation(accelerator, model, ema, validate, step, log)
                validated_at = step
            if over:
                break
        if batches_done == batches_per_epoch:
            epoch, batches_done = epoch + 1, 0
    bar.close()
    if step < config.max_train_steps:
        accelerator.print(
            f"Stopped at step {step} of {config.max_train_steps}: {config.max_train_minutes} min are over."
        )

    if validate is not None and validated_at != step:
        validation = _run_validation(accelerator, model, ema, validate, step, log)
    if save_pretrained is not None and accelerator.is_main_process:
        with _averaged(accelerator.unwrap_model(model), ema) as averaged:
            save_pretrained(averaged)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return TrainingResult(step, log.last_loss, validation)


def _outline(model: nn.Module) -> str:
    """Tells networks apart whose weights do not fit each other."""
    shapes = [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:8]
    return f"{sum(weight.numel() for weight in model.parameters())} parameters ({digest})"


class _Numbered(torch.utils.data.Dataset):
    """Adds to each item its number, from which the objective's randomness is drawn."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "item": index}


def _item_seeds(seed: int, epoch: int, items: torch.Tensor) -> torch.Tensor:
    """(batch,) seeds that differ for every (seed, epoch, item)."""
    seeds = [np.random.SeedSequence([seed, epoch, int(i)]).generate_state(1, np.uint64)[0] >> 1 for i in items.tolist()]
    return torch.tensor([int(s) for s in seeds], dtype=torch.int64)


def _not_finite(what: str, value: torch.Tensor, step: int) -> TrainingError:
    return TrainingError(
        f"The {what} is {value.item()} at step {step}: lower `learning_rate`, or use `mixed_precision='no'`. "
        "The last checkpoint is kept."
    )


def _out_of_time(config: TrainingConfig, started: float) -> bool:
    """Whether the budget is spent, by the main process's clock, so that all stop at the same step."""
    if config.max_train_minutes is None:
        return False
    return broadcast_object_list([time.monotonic() - started >= 60.0 * config.max_train_minutes])[0]


def _make_accelerator(config: TrainingConfig) -> Accelerator:
    # Launched processes without a GPU would each take itself for the only one, if not told.
    cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    if config.mixed_precision == "fp16" and PartialState(cpu).device.type == "cpu":
        raise ValueError("`mixed_precision` fp16 needs a GPU (on a CPU it is silently float32): use bf16 or no.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(
            config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
        ),
    )
    if config.report_to != "none" and not accelerator.log_with:  # accelerate drops what it cannot import
        raise ValueError(f"`report_to` {config.report_to} needs a package that is not installed.")
    return accelerator


class _averaged:
    """The model with the averaged weights, in eval mode, for the length of a `with` block."""

    def __init__(self, model: nn.Module, ema: EMAModel | None) -> None:
        self.model, self.ema = model, ema

    def __enter__(self) -> nn.Module:
        self.was_training = self.model.training
        self.model.eval()
        if self.ema is not None:
            self.ema.store(self.model.parameters())
            self.ema.copy_to(self.model.parameters())
        return self.model

    def __exit__(self, *exception: object) -> None:
        if self.ema is not None:
            self.ema.restore(self.model.parameters())
        self.model.train(self.was_training)


def _run_validation(
    accelerator: Accelerator, model: nn.Module, ema: EMAModel | None, validate: Callable, step: int, log: "_Log"
) -> Validation | None:
    result = None
    if accelerator.is_main_process:
        with torch.no_grad(), _averaged(accelerator.unwrap_model(model), ema) as averaged:
            result = validate(averaged, step)
        log.validation(step, result)
    accelerator.wait_for_everyone()
    return result


class _Log:
    """metrics.jsonl, pictures and trackers; a resumed run drops what the stopped one wrote beyond its step."""

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, step: int) -> None:
        self.accelerator = accelerator
        self.folder = Path(config.output_dir)
        self.path = self.folder / "metrics.jsonl"
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.last_loss = math.nan
        if accelerator.is_main_process:
            _cut_log(self.path, step)
        if config.report_to != "none":
            accelerator.init_trackers(
                "diffusers-ct", config={k: v for k, v in config.to_dict().items() if v is not None}
            )

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value.detach().float().cpu()
            self.counts[name] = self.counts.get(name, 0) + 1

    def write(self, step: int, extra: Mapping[str, float]) -> float:
        """Writes the means since the last line, over all processes."""
        # One exchange of all sums: a process may have had no sample at the last timestep, and so not every name.
        sums = gather_object([{name: (self.sums[name].item(), self.counts[name]) for name in self.sums}])
        means = {}
        for name in sorted(set().union(*sums)):
            parts = [part[name] for part in sums if name in part]
            means[f"train/{name}"] = sum(total for total, _ in parts) / sum(count for _, count in parts)
        self.sums, self.counts = {}, {}
        self.last_loss = means.get("train/loss", math.nan)
        self._line(step, {**means, **{f"train/{name}": value for name, value in extra.items()}})
        return self.last_loss

    def validation(self, step: int, result: Validation) -> None:
        self._line(step, {f"val/{name}": float(value) for name, value in result.metrics.items()})
        folder = self.folder / "validation"
        for name, picture in result.images.items():
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / f"{name}-{step:06d}.png")
            for tracker in self.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    pixels = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
                    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({name: pixels[None]}, step=step, **layout)

    def _line(self, step: int, values: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(dict(values), step=step)


def _cut_log(path: Path, step: int) -> None:
    """Keeps the lines up to a step, and not a last line that a crash tore."""
    lines = path.read_text().splitlines(keepends=True) if step and path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)
