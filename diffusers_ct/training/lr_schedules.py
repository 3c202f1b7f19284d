"""Learning-rate schedules: diffusers' own, and PyTorch's warm restarts with a warm-up."""

from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR

_FROM_DIFFUSERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
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
    lengths = sum(cycle_mult**i for i in range(num_cycles))
    first_cycle = (total_steps - warmup_steps) // lengths
    if first_cycle < 1:
        raise ValueError(
            f"{num_cycles} cycles growing by {cycle_mult} do not fit into {total_steps - warmup_steps} steps after the "
            "warm-up: use fewer cycles or more steps."
        )
    restarts = CosineAnnealingWarmRestarts(optimizer, T_0=first_cycle, T_mult=cycle_mult)
    if not warmup_steps:
        return restarts
    warmup = LinearLR(optimizer, start_factor=1.0 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, restarts], milestones=[warmup_steps])
