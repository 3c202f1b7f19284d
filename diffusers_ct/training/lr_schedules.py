"""Learning-rate schedules: diffusers' own, and PyTorch's warm restarts with a warm-up."""

from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR

_FROM_DIFFUSERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
POLYNOMIAL_END = 1e-7  # diffusers' own
LR_SCHEDULES = (*_FROM_DIFFUSERS, "cosine_warm_restarts")


def make_lr_scheduler(
    name: str,
    optimizer: torch.optim.Optimizer,
    *,
    warmup_steps: int,
    total_steps: int,
    num_cycles: int,
    cycle_mult: int,
) -> Any:
    """Makes a schedule that is stepped once per optimizer step.

    "cosine_with_restarts" (diffusers) has `num_cycles` equal cycles. "cosine_warm_restarts" is PyTorch's
    CosineAnnealingWarmRestarts (Loshchilov and Hutter 2017, arXiv:1608.03983): `num_cycles` cycles, each `cycle_mult`
    times as long as the one before, that together fill the steps after the warm-up.

    Raises:
        ValueError: for an unknown name, or cycles that do not fit into the steps.
    """
    if name in _FROM_DIFFUSERS:
        # The smooth "cosine" of diffusers counts half cycles: its default of 0.5 ends at 0 and is kept.
        cycles: dict[str, Any] = {"num_cycles": num_cycles} if name == "cosine_with_restarts" else {}
        return get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps, **cycles)
    if name != "cosine_warm_restarts":
        raise ValueError(f"Unknown learning-rate schedule {name!r}: choose one of {LR_SCHEDULES}.")
    first_cycle = first_cycle_steps(total_steps - warmup_steps, lr_num_cycles=num_cycles, lr_cycle_mult=cycle_mult)
    restarts = CosineAnnealingWarmRestarts(optimizer, T_0=first_cycle, T_mult=cycle_mult)
    if not warmup_steps:
        return restarts
    warmup = LinearLR(optimizer, start_factor=1.0 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, restarts], milestones=[warmup_steps])


def first_cycle_steps(steps: int, *, lr_num_cycles: int, lr_cycle_mult: int) -> int:
    """Length of the first of the growing cycles of "cosine_warm_restarts" that fill the steps after the warm-up.

    Raises:
        ValueError: if they do not fit.
    """
    first = steps // sum(lr_cycle_mult**i for i in range(lr_num_cycles))
    if first < 1:
        raise ValueError(
            f"The cycles of `lr_num_cycles` = {lr_num_cycles} and `lr_cycle_mult` = {lr_cycle_mult} do not fit into {steps} "
            "steps after the warm-up: use fewer cycles or more steps."
        )
    return first
