"""A scan in the form of MONAI, TorchIO and nibabel: a tensor (1, x, y, z) with an affine to RAS, and back.

With MONAI, which this package does not need:

    form = to_ras_tensor(scan)
    out = transform(MetaTensor(form["image"], affine=form["affine"]))  # of monai.data; any spatial or intensity transform
    changed = from_ras_tensor(out.as_tensor(), out.affine, like=scan)
"""

import numpy as np
import torch

from ..volume import CTVolume
from .nifti import other_handedness


def to_ras_tensor(volume: CTVolume) -> dict[str, torch.Tensor]:
    """The scan as tensors, which share no memory with it.

    Returns:
        "image", (1, width, height, depth) float32 in HU; "affine", (4, 4) float64, maps (x, y, z, 1) to RAS in mm.
    """
    image = np.ascontiguousarray(volume.hu.transpose(2, 1, 0)[None])
    return {
        "image": torch.from_numpy(image.copy() if np.shares_memory(image, volume.hu) else image),
        "affine": torch.from_numpy(other_handedness(volume.affine_lps)),
    }


def from_ras_tensor(image: torch.Tensor, affine: torch.Tensor | np.ndarray, *, like: CTVolume) -> CTVolume:
    """The scan that a transform made of `to_ras_tensor(like)`.

    Conditions are those of `like`, whatever the transform did to the voxels (a resampled scan has less noise than its dose
    says); the source header is kept where shape and place are.

    Args:
        image: (1, width, height, depth) in HU.
        affine: (4, 4), maps (x, y, z, 1) to RAS in mm; without shear.
        like: what the transform was given.

    Raises:
        ValueError: for another shape, or an affine that is sheared.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"`image` must be (1, width, height, depth), got {tuple(image.shape)}.")
    hu = image[0].detach().cpu().numpy().transpose(2, 1, 0).astype(np.float32)
    affine_lps = other_handedness(np.asarray(affine, dtype=np.float64))
    lengths = np.linalg.norm(affine_lps[:3, :3], axis=0)
    columns = affine_lps[:3, :3] / lengths
    if not np.abs(columns.T @ columns - np.eye(3)).max() < 1e-3:
        raise ValueError("`affine` is sheared or not finite: a `CTVolume` has axes at right angles.")
    if hu.shape == like.shape and np.allclose(affine_lps, like.affine_lps, atol=1e-6):
        return like.with_hu(hu)
    x, y, z = (float(length) for length in lengths)
    return CTVolume(hu, (z, y, x), affine_lps, like.conditions, synthetic=like.synthetic)
