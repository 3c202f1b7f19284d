"""Settings of a training run: one frozen dataclass that is also its command line."""

import argparse
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..schedulers import NOISE_SCHEDULES
from .lr_schedules import LR_SCHEDULES, POLYNOMIAL_END, first_cycle_steps

MIXED_PRECISION = ("no", "fp16", "bf16")


def _setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; names and meanings follow diffusers' example scripts. See each field's help text.

    Raises:
        TypeError: for a value of the wrong kind.
        ValueError: for a value that cannot be meant, before any work is done.
    """

    output_dir: str = field(
        metadata={"help": "Folder of the run: checkpoints, metrics.jsonl, training_config.json.", "choices": ()}
    )
    max_train_steps: int = _setting(1000, "Optimizer steps; the learning-rate schedule ends there.")
    max_train_minutes: float | None = _setting(
        None,
        "Wall-clock budget of this call: ends it cleanly at a step; the learning rate still follows max_train_steps.",
    )
    train_batch_size: int = _setting(8, "Training items (patches, slabs, volumes) per process and accumulation step.")
    gradient_accumulation_steps: int = _setting(1, "Batches added up for one optimizer step.")
    learning_rate: float = _setting(5e-4, "Largest learning rate.")
    lr_scheduler: str = _setting("cosine", "Learning-rate schedule.", LR_SCHEDULES)
    lr_warmup_steps: int = _setting(50, "Steps over which the learning rate rises from 0; constant has none.")
    lr_num_cycles: int = _setting(
        1, "Equal cycles of cosine_with_restarts; for cosine_warm_restarts see lr_cycle_mult."
    )
    lr_cycle_mult: int = _setting(2, "cosine_warm_restarts: each cycle is this many times as long as the one before.")
    adam_beta1: float = _setting(0.9, "AdamW: decay of the mean gradient.")
    adam_beta2: float = _setting(0.99, "AdamW: decay of the mean squared gradient.")
    adam_weight_decay: float = _setting(1e-4, "AdamW: weight decay.")
    adam_epsilon: float = _setting(1e-8, "AdamW: epsilon.")
    max_grad_norm: float = _setting(1.0, "Gradients are clipped to this norm.")
    mixed_precision: str = _setting("no", "Autocast type; fp16 needs a GPU.", MIXED_PRECISION)
    gradient_checkpointing: bool = _setting(False, "Trade time for memory.")
    terminal_fraction: float = _setting(0.5, "Fraction of samples at the last timestep, in [0.2, 1].")
    noise_schedule: str = _setting("cosine", "Noise schedule.", tuple(NOISE_SCHEDULES))
    use_ema: bool = _setting(True, "Average the weights; the average is validated and saved.")
    ema_decay: float = _setting(0.999, "Decay of the average once warmed up.")
    dataloader_num_workers: int = _setting(
        0, "Processes that make the training items; 0 makes them in the training process."
    )
    logging_steps: int = _setting(20, "Steps between lines in metrics.jsonl and the trackers.")
    validation_steps: int = _setting(0, "Steps between validations; 0 validates at the end only.")
    checkpointing_steps: int = _setting(500, "Steps between checkpoints; one is always made at the end.")
    checkpoints_total_limit: int | None = _setting(2, "Checkpoints kept; the oldest are deleted.")
    resume_from_checkpoint: str | None = _setting(None, "'latest' (starts anew where there is none), or a folder.")
    seed: int = _setting(0, "Of weights, patches, timesteps and noise.")
    report_to: str = _setting("none", "Tracker: tensorboard, wandb, ... or none.")
    logging_dir: str = _setting("logs", "Folder of the tracker's files, inside output_dir.")
    push_to_hub: bool = _setting(False, "Push the pipeline and its card when training has ended.")
    hub_model_id: str | None = _setting(None, "Repository on the Hub, user/name.")

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            _check_kind(name, hint, getattr(self, name))
        positive = (
            "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_num_cycles",
            "lr_cycle_mult", "max_grad_norm", "adam_epsilon", "logging_steps", "checkpointing_steps",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("lr_warmup_steps", "validation_steps", "dataloader_num_workers", "adam_weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        if not 0.2 <= self.terminal_fraction <= 1.0:
            raise ValueError(f"`terminal_fraction` must be in [0.2, 1], got {self.terminal_fraction}.")
        if self.max_train_minutes is not None and not self.max_train_minutes > 0:
            raise ValueError(
                f"`max_train_minutes` must be positive, or None for no limit, got {self.max_train_minutes}."
            )
        for f in fields(self):
            choices, value = f.metadata["choices"], getattr(self, f.name)
            if choices and value not in choices:
                raise ValueError(f"`{f.name}` must be one of {choices}, got {value!r}.")
        if self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(
                f"`lr_warmup_steps` = {self.lr_warmup_steps} must be less than `max_train_steps` = {self.max_train_steps}."
            )
        if self.lr_scheduler == "cosine_warm_restarts":
            first_cycle_steps(
                self.max_train_steps - self.lr_warmup_steps,
                lr_num_cycles=self.lr_num_cycles,
                lr_cycle_mult=self.lr_cycle_mult,
            )
        if self.lr_scheduler == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ValueError(
                f"`learning_rate` must be above {POLYNOMIAL_END}, where polynomial ends, got {self.learning_rate}."
            )
        if self.report_to not in ("none", "all", *LOGGER_TYPE_TO_CLASS):
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"`report_to` must be none, all, or one of {known}, got {self.report_to!r}.")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise ValueError("`checkpoints_total_limit` must be at least 1, or None to keep all.")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("`push_to_hub` needs `hub_model_id`: the repository to push to, user/name.")
        if self.hub_model_id is not None:
            try:
                validate_repo_id(self.hub_model_id)
            except HFValidationError as error:
                raise ValueError(f"`hub_model_id` can be no repository: {error}") from None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds one flag for each field; booleans as --name and --no-name."""
        hints = get_type_hints(cls)
        for f in fields(cls):
            text = f.metadata["help"].replace("%", "%%")
            kind = _base_type(hints[f.name])
            flag = f"--{f.name}"
            if f.name == "output_dir":
                parser.add_argument(flag, required=True, help=text)
            elif kind is bool:
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default, help=text)
            else:
                choices = f.metadata["choices"] or None
                parser.add_argument(flag, type=kind, default=f.default, choices=choices, help=f"{text} [{f.default}]")

    @classmethod
    def from_args(cls, arguments: argparse.Namespace) -> "TrainingConfig":
        """Reads the fields from parsed arguments; others are left alone."""
        return cls(**{f.name: getattr(arguments, f.name) for f in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of all fields."""
        return asdict(self)

    def save(self) -> Path:
        """Writes training_config.json into `output_dir`."""
        path = Path(self.output_dir) / "training_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path


def _check_kind(name: str, hint: Any, value: Any) -> None:
    """Refuses 2.5 for an int, True for a number, and numbers that are not finite."""
    kind = _base_type(hint)
    if value is None and kind is not hint:
        return
    allowed: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"`{name}` must be {kind.__name__}, got {value!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")


def _base_type(hint: Any) -> type:
    """int for `int | None`, else the type itself."""
    if get_origin(hint) is None:
        return hint
    return next(t for t in get_args(hint) if t is not type(None))
