"""Group norm with the statistics of a whole scan, so that a tile is normalised as its neighbours are.

Group norm takes mean and variance from what it is shown. Of a tile at the shoulders they are not those of a tile in the lungs,
so neighbouring tiles disagree about the slices they share. Here they are gathered from tiles spread over the scan, at each
step, and then the same for all tiles (as batch norm's after training: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2).

What a layer is shown depends on how the layers before it normalise. So each tile that gives statistics is itself normalised
by those that are known by then, and all are shown several times: the fixed point is the scan's own statistics, and as in
Gauss and Seidel's iteration what is new is used at once.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.blocks import modulate

Forward = Callable[..., torch.Tensor]
_Sums = dict[float, dict[int, torch.Tensor]]


class ScanNorms:
    """The group norms of a network and their statistics, by timestep.

    Args:
        unet: the network. One without group norm is left as it is, and so is one whose blocks are compiled, as compiled
            code does not see that a norm has changed, or whose weights are elsewhere until they are needed.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._norms = [module for module in unet.modules() if isinstance(module, nn.GroupNorm)]
        compiled = any(module._compiled_call_impl is not None for module in unet.modules())
        if compiled or any(norm.weight.is_meta for norm in self._norms):
            self._norms = []
        # timestep -> number of the norm -> sums over the tiles of (n, n mean, n mean square) of its groups, n voxels
        self._sums: _Sums = {}
        self._new: _Sums = {}  # of the tile that is being shown
        self._of_tiles: dict[int, _Sums] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to gather."""
        return bool(self._norms)

    @contextmanager
    def gathered(self, timestep: torch.Tensor, inner: tuple[float, float] = (0.0, 1.0)) -> Iterator[None]:
        """Within it, what the network is shown counts for the statistics at `timestep`, from the next `keep` on.

        Args:
            timestep: of the network.
            inner: which part of the slices shown counts, as fractions. At a cut through the scan convolutions see zeros, so
                the slices there have statistics that no slice of the whole has.
        """
        sums = self._new.setdefault(float(timestep), {})

        def add(number: int) -> Callable[[nn.Module, Any], None]:
            def hook(norm: Any, given: Any) -> None:
                slices = given[0].shape[2] if given[0].ndim == 5 else 1
                first = min(int(inner[0] * slices), slices - 1)
                counted = (
                    given[0][:, :, first : max(math.ceil(inner[1] * slices), first + 1)] if slices > 1 else given[0]
                )
                sums[number] = sums.get(number, 0.0) + _moments(counted, norm.num_groups)

            return hook

        hooks = [norm.register_forward_pre_hook(add(number)) for number, norm in enumerate(self._norms)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def forget(self) -> None:
        """Begins anew."""
        self._sums, self._new, self._of_tiles = {}, {}, {}

    def keep(self, tile: int) -> None:
        """What was gathered since the last call is that tile's, and takes the place of what the tile gave before."""
        self._of_tiles[tile], self._new, self._sums = self._new, {}, {}
        for of_tile in self._of_tiles.values():
            for timestep, of_norms in of_tile.items():
                sums = self._sums.setdefault(timestep, {})
                for number, value in of_norms.items():
                    sums[number] = sums.get(number, 0.0) + value

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
    """(3, groups): number of voxels of (batch, channels, ...), and sums over them of the channels' mean and mean square."""
    # Slice by slice: float32 copies of whole activations would be the largest of all tensors. `var_mean` takes ten times as
    # long on a CPU, and a group norm of channels that lie last is wrong by 2 % where the mean is 7 standard deviations.
    images = x.unbind(2) if x.ndim == 5 else (x,)
    of_images = []
    for image in images:
        space = tuple(range(2, image.ndim))
        mean = image.float().mean(space, keepdim=True)
        of_images.append(torch.stack([mean.flatten(1), (image - mean).square_().mean(space)]))
    # What is left are a few numbers: in float64, as the variance is a difference of sums.
    mean, var = torch.stack(of_images, dim=1).cpu().double().unflatten(3, (groups, -1))
    mean, square = mean.mean((0, 3)), (var + mean.square()).mean((0, 3))
    return x[0, 0].numel() * torch.stack([torch.ones_like(mean), mean, square], dim=1).sum(dim=0)


def _fixed(norm: nn.GroupNorm, total: torch.Tensor) -> Forward:
    """`norm` with the mean and the variance that `total` tells."""
    channels = norm.num_channels // norm.num_groups
    mean, square = ((total[k] / total[0]).repeat_interleave(channels) for k in (1, 2))
    variance = (square - mean.square()).clamp(min=0.0)

    def forward(x: torch.Tensor, scale_shift: torch.Tensor | None = None) -> torch.Tensor:
        # Beside bfloat16 all but the voxels stays float32.
        shown, spread, weight, bias = (
            of_channels.to(x.device, torch.float32) for of_channels in (mean, variance, norm.weight, norm.bias)
        )
        if scale_shift is not None and len(x) == 1:  # in one pass over the voxels
            scale, shift = scale_shift[0].float().chunk(2)
            weight, bias, scale_shift = weight * (1.0 + scale), bias * (1.0 + scale) + shift, None
        out = F.batch_norm(x, shown, spread, weight, bias, training=False, eps=norm.eps)
        return out if scale_shift is None else modulate(out, scale_shift)

    return forward
