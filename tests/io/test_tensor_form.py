"""A scan for MONAI and the like and back: as its NIfTI file says it, and every voxel keeps its place in the patient."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch

from diffusers_ct import CTVolume, ScanConditions, from_ras_tensor, to_ras_tensor, write_volume
from diffusers_ct.io import Derivation

SLOPE, OFFSET = np.array([0.7, -1.1, 0.4]), 30.0  # HU per mm of the patient: a field that tells where each voxel lies


def places_mm(volume: CTVolume) -> np.ndarray:
    """LPS coordinates of all voxels, (depth, height, width, 3)."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")
    return (np.stack([x, y, z, np.ones_like(x)], axis=-1) @ volume.affine_lps.T)[..., :3]


def oblique_scan() -> CTVolume:
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 0.9, 2.5])
    affine[:3, 3] = [-20.0, 15.0, 100.0]
    empty = CTVolume(np.zeros((5, 7, 6)), (2.5, 0.9, 0.8), affine, ScanConditions(kernel="B30f"))
    return empty.with_hu(places_mm(empty) @ SLOPE + OFFSET)


def assert_in_place(volume: CTVolume, atol: float = 1e-3) -> None:
    np.testing.assert_allclose(volume.hu, places_mm(volume) @ SLOPE + OFFSET, atol=atol)


def test_the_form_is_that_of_the_nifti_file(tmp_path):
    scan = oblique_scan()
    derivation = Derivation(method="test", package_version="0")
    write_volume(scan, tmp_path / "scan.nii", derivation=derivation)
    image, form = nib.load(tmp_path / "scan.nii"), to_ras_tensor(scan)
    np.testing.assert_array_equal(form["image"][0].numpy(), np.asarray(image.dataobj))
    np.testing.assert_allclose(form["affine"].numpy(), image.affine, atol=1e-4)
    assert form["image"].dtype == torch.float32 and form["image"].shape == (1, 6, 7, 5)


def test_there_and_back_is_the_same_scan_with_its_source():
    scan = dataclasses.replace(oblique_scan(), source="header")
    form = to_ras_tensor(scan)
    back = from_ras_tensor(form["image"], form["affine"], like=scan)
    assert np.array_equal(back.hu, scan.hu) and np.array_equal(back.affine_lps, scan.affine_lps)
    assert back.source == "header" and back.conditions == scan.conditions
    form["image"].zero_()
    assert scan.hu.any()
    thin = CTVolume.from_array(np.ones((1, 1, 4)), (1, 1, 1))
    to_ras_tensor(thin)["image"].zero_()
    assert thin.hu.all()


def test_a_transform_moves_voxels_with_their_place():
    scan = dataclasses.replace(oblique_scan(), source="header", synthetic=True)
    form = to_ras_tensor(scan)
    flip = torch.eye(4, dtype=torch.float64)
    flip[0, 0], flip[0, 3] = -1.0, scan.shape[2] - 1
    flipped = from_ras_tensor(form["image"].flip(1), form["affine"] @ flip, like=scan)
    assert not np.array_equal(flipped.hu, scan.hu)
    assert_in_place(flipped)
    thinned = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    coarse = from_ras_tensor(form["image"][:, ::2], form["affine"] @ thinned, like=scan)
    assert coarse.spacing_mm == pytest.approx((2.5, 0.9, 1.6)) and coarse.source is None and coarse.synthetic
    assert coarse.conditions == scan.conditions
    assert_in_place(coarse)


def test_what_is_no_scan_is_refused():
    scan = oblique_scan()
    form = to_ras_tensor(scan)
    with pytest.raises(ValueError, match=r"\(1, width, height, depth\)"):
        from_ras_tensor(form["image"][0], form["affine"], like=scan)
    sheared = form["affine"].clone()
    sheared[0, 1] += 0.5
    with pytest.raises(ValueError, match="sheared"):
        from_ras_tensor(form["image"], sheared, like=scan)


@pytest.mark.parametrize("name", ["Spacing", "Orientation", "CenterSpatialCrop", "Flip", "Rotate90", "ScaleIntensity"])
def test_monai_transforms_keep_every_voxel_in_its_place(name):
    monai = pytest.importorskip("monai")
    transforms = monai.transforms
    transform = {
        "Spacing": lambda: transforms.Spacing(pixdim=(1.1, 1.0, 2.0), padding_mode="border"),
        "Orientation": lambda: transforms.Orientation(axcodes="SPL", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        "CenterSpatialCrop": lambda: transforms.CenterSpatialCrop((4, 4, 3)),
        "Flip": lambda: transforms.Flip(spatial_axis=1),
        "Rotate90": lambda: transforms.Rotate90(),
        "ScaleIntensity": lambda: transforms.ScaleIntensity(minv=None, maxv=None, factor=-0.5),
    }[name]()
    scan = oblique_scan()
    form = to_ras_tensor(scan)
    out = transform(monai.data.MetaTensor(form["image"], affine=form["affine"]))
    changed = from_ras_tensor(out.as_tensor(), out.affine, like=scan)
    if name == "ScaleIntensity":
        np.testing.assert_allclose(changed.hu, 0.5 * scan.hu, rtol=1e-5)
        return
    assert changed.shape != scan.shape or not np.array_equal(changed.hu, scan.hu)
    if name == "Spacing":  # the border is repeated, not continued
        inner = changed.crop((1, 1, 1), [n - 2 for n in changed.shape])
        assert_in_place(inner, atol=0.05)
        assert changed.spacing_mm == pytest.approx((2.0, 1.0, 1.1))
    else:
        assert_in_place(changed)
