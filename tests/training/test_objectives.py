"""The objective's optimum is known for Gaussian data; its draws are those of the item alone."""

import pytest
import torch
from torch import nn

from diffusers_ct.models import UNet3DCTOutput
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective

NOISE_HU, SIGNAL_HU = 20.0, 30.0


class Linear(nn.Module):
    """v = gain x (low - 40) / s from the first noise-window channel, and a share of x_t; two numbers to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, sample, timestep, pooled=None, spacing_mm=None):
        return UNet3DCTOutput(sample=8.0 * self.gain * sample[:, 4:5] + self.share * sample[:, :1])


def batch(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    full = 40.0 + SIGNAL_HU * torch.randn(size, 1, 1, 16, 16, generator=generator)
    low = full + NOISE_HU * torch.randn(size, 1, 1, 16, 16, generator=generator)
    return {
        "low_hu": low, "full_hu": full, "noise_hu": torch.full((size, 1), NOISE_HU), "spacing_mm": torch.ones(size, 3),
    }  # fmt: skip


def test_optimum_at_the_last_step_is_the_wiener_estimate():
    # E[full - 40 | low] = S / (S + N) (low - 40), so E[r | low] = -(N / (S + N)) (low - 40) / s and v = -E[r | low].
    g = torch.Generator().manual_seed(0)
    model = Linear()
    objective = ResidualDiffusionObjective(model, make_noise_scheduler(), terminal_fraction=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(250):
        optimizer.zero_grad()
        objective(batch(8, g), torch.arange(8) + 8 * step)["loss"].backward()
        optimizer.step()
    wiener = NOISE_HU**2 / (NOISE_HU**2 + SIGNAL_HU**2)
    assert model.gain.item() == pytest.approx(wiener, abs=0.02)
    assert model.share.item() == pytest.approx(0.0, abs=0.02)


def test_loss_of_a_model_that_knows_nothing_is_the_power_of_v():
    g = torch.Generator().manual_seed(1)
    objective = ResidualDiffusionObjective(Linear(), make_noise_scheduler(), terminal_fraction=0.25)
    logs = objective(batch(64, g), torch.arange(64))
    # r has unit variance here, and so has v at every timestep
    assert logs["loss"].item() == pytest.approx(1.0, abs=0.05)
    assert logs["loss_terminal"].item() == pytest.approx(1.0, abs=0.1)


def test_refusals():
    with pytest.raises(ValueError, match="terminal_fraction"):
        ResidualDiffusionObjective(Linear(), make_noise_scheduler(), terminal_fraction=0.1)
    with pytest.raises(ValueError, match="predicts v"):
        ResidualDiffusionObjective(Linear(), make_noise_scheduler(prediction_type="sample"), terminal_fraction=0.5)
