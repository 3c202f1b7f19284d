"""Group norm with the statistics of a whole scan, so that a tile is normalised as its neighbours are.

Group norm takes mean and variance from what it is shown. Of a tile at the shoulders they are not those of a tile in the lungs,
so neighbouring tiles disagree about the slices they share. Here they are gathered from tiles spread over the scan, at each
step, and then the same for all tiles (as batch norm's after training: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.blocks import modulate

Forward = Callable[..., torch.Tensor]


class ScanNorms:
    """The group norms of a network and their statistics, by timestep.

    Not exact: a layer's statistics are gathered while the layers before it still normalise by the tile's own.

    Args:
        unet: the network. One without group norm is left as it is, and so is one whose blocks are compiled, as compiled
            code does not see that a norm has changed, or whose weights are elsewhere until they are needed.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._norms = [module for module in unet.modules() if isinstance(module, nn.GroupNorm)]
        compiled = any(module._compiled_call_impl is not None for module in unet.modules())
        if compiled or any(norm.weight.is_meta for norm in self._norms):
            self._norms = []
        # timestep -> number of the norm -> sums over the tiles of (1, mean, mean square) of its groups
        self._sums: dict[float, dict[int, torch.Tensor]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to gather."""
        return bool(self._norms)

    @contextmanager
    def gathered(self, timestep: torch.Tensor) -> Iterator[None]:
        """Within it, what the network is shown counts for the statistics at `timestep`."""
        sums = self._sums.setdefault(float(timestep), {})

        def add(number: int) -> Callable[[nn.Module, Any], None]:
            def hook(norm: Any, given: Any) -> None:
                sums[number] = sums.get(number, 0.0) + _moments(given[0], norm.num_groups)

            return hook

        hooks = [norm.register_forward_pre_hook(add(number)) for number, norm in enumerate(self._norms)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def applied(self, timestep: torch.Tensor) -> Iterator[None]:
        """Within it, the network normalises by the statistics at `timestep`; where none were gathered, by the tile's own."""
        sums = self._sums.get(float(timestep), {})
        hooked = [vars(norm).get("forward") for norm in self._norms]  # by diffusers, to fetch the weights
        try:
            for number, total in sums.items():
                norm = self._norms[number]
                norm.forward = _fixed(norm, total)  # type: ignore[method-assign]
            yield
        finally:
            for norm, forward in zip(self._norms, hooked):
                vars(norm).pop("forward", None)
                if forward is not None:
                    norm.forward = forward  # type: ignore[method-assign]


def _moments(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(3, groups): number of samples, and sums over them of the mean and the mean square of (batch, channels, ...)."""
    # One group after the other: float32 copies of whole activations would be the largest of all tensors.
    parts = [torch.var_mean(part.float().flatten(1), dim=1, correction=0) for part in x.chunk(groups, dim=1)]
    var, mean = (torch.stack(values, dim=1) for values in zip(*parts))
    return torch.stack([torch.ones_like(mean), mean, var + mean.square()], dim=1).sum(dim=0)


def _fixed(norm: nn.GroupNorm, total: torch.Tensor) -> Forward:
    """`norm` with the mean and the variance that `total` tells."""
    channels = norm.num_channels // norm.num_groups
    mean, square = ((total[k] / total[0]).repeat_interleave(channels) for k in (1, 2))
    variance = square - mean.square()

    def forward(x: torch.Tensor, scale_shift: torch.Tensor | None = None) -> torch.Tensor:
        # Beside bfloat16 all but the voxels stays float32.
        weight, bias = (parameter.to(x.device, torch.float32) for parameter in (norm.weight, norm.bias))
        out = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)
        return out if scale_shift is None else modulate(out, scale_shift)

    return forward
