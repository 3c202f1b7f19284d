"""Rotary position embedding in millimetres: what two tokens see of each other depends on their distance in mm.

References:
    Su et al. 2021, arXiv:2104.09864, eq. 15 and 34, applied to each axis with its own share of a head's channels.
"""

import torch

# Shortest and longest wavelength. Two neighbouring tokens must turn by less than half a turn, or a step forward looks
# like one backward, and differently so at another spacing: tokens of the presets lie up to 8 mm apart (8 voxels of
# 0.98 mm in the plane, one thick slice along z), hence 16 mm. The longest is twice the width of a body (400 mm), so
# that no two tokens of a slice share all their phases.
WAVELENGTHS_MM = (16.0, 800.0)
MIN_HEAD_DIM = 6  # one pair of channels for each axis


def rotary_table(
    grid: tuple[int, int, int], token_spacing_mm: torch.Tensor, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the phases of all tokens of a grid.

    The head_dim // 2 pairs of channels are shared evenly among z, y and x, with the same wavelengths for each axis;
    what is left over (2 pairs of 32) is not rotated and carries content alone.

    Args:
        grid: tokens along (z, y, x).
        token_spacing_mm: (batch, 3), distance between neighbouring tokens along (z, y, x).
        head_dim: channels of a head.

    Returns:
        Two of (batch, z y x, 1, 3 (head_dim // 6)) float32.
    """
    each = head_dim // MIN_HEAD_DIM
    device, batch = token_spacing_mm.device, token_spacing_mm.shape[0]
    shortest, longest = WAVELENGTHS_MM
    exponent = torch.linspace(0.0, 1.0, each, device=device, dtype=torch.float32)
    radians_per_mm = 2.0 * torch.pi / (shortest * (longest / shortest) ** exponent)
    phases = []
    for axis, size in enumerate(grid):
        index = torch.arange(size, device=device, dtype=torch.float32)
        position_mm = index * token_spacing_mm[:, axis, None].float()  # where 0 lies has no effect
        phase = position_mm[:, :, None] * radians_per_mm
        shape = [batch, 1, 1, 1, each]
        shape[1 + axis] = size
        phases.append(phase.reshape(shape).expand(batch, *grid, each))
    table = torch.cat(phases, dim=-1).flatten(1, 3).unsqueeze(2)
    return table.cos(), table.sin()


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns queries or keys (batch, tokens, heads, head_dim) by the phases of their tokens, in float32."""
    pairs = cos.shape[-1]
    a, b, rest = heads.split([pairs, pairs, heads.shape[-1] - 2 * pairs], dim=-1)
    a, b = a.float(), b.float()
    turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned.to(heads.dtype), rest], dim=-1)
