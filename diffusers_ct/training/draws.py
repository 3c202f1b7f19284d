"""Random draws of a training step: from the items' seeds alone, on the CPU, the same on every device."""

import zlib

import torch


def draw_timesteps_and_noise(
    seeds: torch.Tensor, like: torch.Tensor, num_train_timesteps: int, *, terminal_fraction: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A timestep and a noise field for each item.

    Args:
        seeds: (batch,) integers.
        like: (batch, channels, depth, height, width), gives shape and device of the noise.
        num_train_timesteps: of the noise schedule.
        terminal_fraction: of the items, at the last timestep; the rest is drawn evenly.

    Returns:
        (batch,) int64 and the noise.
    """
    last = num_train_timesteps - 1
    timesteps, noise = [], []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(seed)
        at_end = torch.rand((), generator=generator).item() < terminal_fraction
        drawn = torch.randint(0, last + 1, (), generator=generator).item()
        timesteps.append(last if at_end else drawn)
        noise.append(torch.randn(like.shape[1:], generator=generator))
    return torch.tensor(timesteps, device=like.device), torch.stack(noise).to(like.device)


def uniform(seeds: torch.Tensor, count: int, *, stream: str) -> torch.Tensor:
    """(batch, count) numbers in [0, 1), independent between streams and of timestep and noise."""
    salt = zlib.crc32(stream.encode())
    rows = [torch.rand(count, generator=torch.Generator().manual_seed((s ^ salt) % 2**63)) for s in seeds.tolist()]
    return torch.stack(rows)
