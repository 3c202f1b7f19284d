"""RED-CNN: a residual encoder-decoder without pooling, the field's reference.

Written from Chen et al. 2017, IEEE TMI 36(12):2524, arXiv:1702.00288, section II: five convolutions, five transposed
convolutions, 5 x 5, 96 filters, no padding, a ReLU after each; shortcuts from the input, the second and the fourth
convolution, added before the ReLU. Not as there: patch size, optimiser and learning rate are those of the comparison.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .slice_network import INPUT_SCALE_HU, OUTPUT_SCALE_HU, SliceBaseline

# The last ReLU cuts at the zero of the input's scale. It is put where no reconstruction goes, so that air keeps its
# noise and its mean; with zero at -1024 HU it would cut one side of the noise off.
ZERO_HU = -2048.0
KERNEL = 5
LAYERS = 5


class REDCNNNetwork(nn.Module):
    """(slices, 1, height, width) in HU -> restored HU; height and width at least 21.

    Args:
        filters: channels of every layer but the last.
    """

    def __init__(self, filters: int = 96) -> None:
        super().__init__()
        ins = [1] + [filters] * (LAYERS - 1)
        outs = [filters] * (LAYERS - 1) + [1]
        self.encoder = nn.ModuleList(nn.Conv2d(n, filters, KERNEL) for n in ins)
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(filters, n, KERNEL) for n in outs)
        for layer in (*self.encoder, *self.decoder):
            nn.init.normal_(layer.weight, std=0.01)  # section III.B
            nn.init.zeros_(layer.bias)

    def forward(self, low_hu: torch.Tensor) -> torch.Tensor:
        h = low_hu / INPUT_SCALE_HU  # an offset is the bias of the first layer's: without padding the same functions
        shortcuts = []
        for number, layer in enumerate(self.encoder, start=1):
            h = F.relu(layer(h))
            if number in (2, 4):
                shortcuts.append(h)
        for number, layer in enumerate(self.decoder, start=1):
            h = layer(h)
            if number in (1, 3):
                h = h + shortcuts.pop()
            if number < LAYERS:
                h = F.relu(h)
        return (low_hu + OUTPUT_SCALE_HU * h.float()).clamp(min=ZERO_HU)  # the last shortcut and ReLU, in HU


class REDCNN(SliceBaseline):
    """RED-CNN, 1 848 865 parameters: 2496 + 8 x 230 496 + 2401."""

    name = "red-cnn"
    source = "Chen et al. 2017, arXiv:1702.00288"
    smallest_slice = LAYERS * (KERNEL - 1) + 1

    def __init__(self) -> None:
        self.network = REDCNNNetwork()
