"""DnCNN: a plain deep network with batch norm that predicts the noise.

Written from Zhang et al. 2017, IEEE TIP 26(7):3142, arXiv:1608.03981, section III: convolution and ReLU; 15 x
convolution, batch norm, ReLU; convolution; 3 x 3, 64 filters, zero padding; the output is taken from the input. A
bias before a batch norm has no effect and is left out. Not as there: patch size, optimiser and learning rate are those
of the comparison.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .slice_network import INPUT_SCALE_HU, OUTPUT_SCALE_HU, SliceBaseline, as_slices

DEPTH = 17  # of DnCNN-S, for one kind of noise


class DnCNNNetwork(nn.Module):
    """(slices, 1, height, width) in HU -> restored HU."""

    def __init__(self, depth: int = DEPTH, filters: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, filters, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(filters, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters)]
            layers += [nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(filters, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015, as the paper
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, low_hu: torch.Tensor) -> torch.Tensor:
        noise = self.layers(low_hu / INPUT_SCALE_HU)
        return low_hu - OUTPUT_SCALE_HU * noise.float()


class DnCNN(SliceBaseline):
    """DnCNN, 556 097 parameters: 640 + 15 x (36 864 + 128) + 577."""

    name = "dncnn"
    source = "Zhang et al. 2017, arXiv:1608.03981"

    def __init__(self) -> None:
        self.network = DnCNNNetwork()

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Measures the statistics of the batch norms anew: the loop averages weights, not them."""
        slices = (as_slices(batch["low_hu"]) for batch in batches)
        torch.optim.swa_utils.update_bn(slices, self.network, device=self.device)
