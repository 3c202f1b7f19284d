"""Slices that come one by one make the same files as whole volumes; lazily opened scans hold the same voxels."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from diffusers_ct import CTVolume, read_volume
from diffusers_ct.io import Derivation, open_scan, open_volume_writer
from diffusers_ct.volume import ScanSlices
from tests.io.synthetic import hu_of, write_series

FACTS = Derivation("testing", "0", seed=3)


def oblique() -> CTVolume:
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([0.6, 0.7, 2.5])
    affine[:3, 3] = (-10.25, 20.125, -1 / 3)
    hu = np.random.default_rng(0).normal(0.0, 300.0, (5, 14, 12)).astype(np.float32)
    return CTVolume(np.rint(hu).clip(-1000.0, 1000.0), (2.5, 0.7, 0.6), affine)


@pytest.mark.parametrize("name", ["out", "out.nii", "out.nii.gz", "out.mha"])
def test_slices_in_uneven_pieces_make_the_volume(tmp_path, name):
    volume = oblique()
    with open_volume_writer(tmp_path / name, ScanSlices.of(volume), derivation=FACTS) as writer:
        assert writer.seconds_per_slice(volume.hu[0]) > 0
        for piece in (volume.hu[:1], volume.hu[1:4], volume.hu[4:]):
            writer.write(piece)
        assert not (tmp_path / name).exists()  # it appears whole
    again = read_volume(tmp_path / name)
    assert np.array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine_lps, volume.affine_lps, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.nii.gz", "out.mha"])
def test_other_programs_read_the_streamed_files_alike(tmp_path, name):
    volume = oblique()
    with open_volume_writer(tmp_path / name, ScanSlices.of(volume), derivation=FACTS) as writer:
        writer.write(volume.hu)
    image = sitk.ReadImage(str(tmp_path / name))
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.hu)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing_mm[::-1], rtol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), volume.affine_lps[:3, 3], atol=1e-5)
    direction = volume.affine_lps[:3, :3] / np.array(volume.spacing_mm[::-1])
    np.testing.assert_allclose(image.GetDirection(), direction.ravel(), atol=1e-5)
    if name.endswith(".mha"):
        assert image.GetMetaData("DiffusersCT_seed") == "3"
    else:
        loaded = nib.load(tmp_path / name)
        assert loaded.get_data_dtype() == np.float32 and "seed" in str(loaded.header.extensions[0].get_content())


@pytest.mark.parametrize("name", ["out", "out.nii", "out.nii.gz", "out.mha"])
def test_too_few_too_many_and_wrong_slices_leave_nothing(tmp_path, name):
    volume = oblique()
    for pieces, words in (
        ([volume.hu[:3]], "3 slices were written of a scan of 5"),
        ([volume.hu, volume.hu[:1]], "do not fit behind 5"),
        ([volume.hu[:, :3]], "do not fit"),
    ):
        with (
            pytest.raises(ValueError, match=words),
            open_volume_writer(tmp_path / name, ScanSlices.of(volume), derivation=None) as writer,
        ):
            for piece in pieces:
                writer.write(piece)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError), open_volume_writer(tmp_path / name, ScanSlices.of(volume), derivation=None):
        pass


def test_each_slice_gets_the_finest_step_that_holds_it(tmp_path):
    hu = np.stack([np.full((4, 4), value, np.float32) for value in (12.345, 1234.56, 9999.4)])
    volume = CTVolume.from_array(hu, (1.0, 1.0, 1.0))
    with open_volume_writer(tmp_path / "sd", ScanSlices.of(volume), derivation=None, rescale_slope=None) as writer:
        writer.write(hu)
    slopes = [float(pydicom.dcmread(path).RescaleSlope) for path in sorted((tmp_path / "sd").iterdir())]
    assert slopes == [0.01, 0.1, 1.0]
    np.testing.assert_allclose(read_volume(tmp_path / "sd").hu[:, 0, 0], [12.35, 1234.6, 9999.0], atol=0.01)


def test_a_lazily_opened_series_decodes_what_is_asked_for(tmp_path, monkeypatch):
    write_series(tmp_path / "in", hu_of((6, 16, 12)), KVP="100")
    whole, lazy = read_volume(tmp_path / "in"), open_scan(tmp_path / "in")
    assert lazy.shape == whole.shape and lazy.spacing_mm == whole.spacing_mm and lazy.conditions == whole.conditions
    np.testing.assert_array_equal(lazy.affine_lps, whole.affine_lps)
    assert lazy.source.notes == whole.source.notes and len(lazy.source.headers) == 6
    assert np.array_equal(np.concatenate([lazy.read(0, 4), lazy.read(4, 6)]), whole.hu)
    # The files of slices 0 to 3 are gone: the others can be read all the same, for nothing else is touched.
    for path in (tmp_path / "in").iterdir():
        if float(pydicom.dcmread(path).ImagePositionPatient[2]) < whole.affine_lps[2, 3] + 3.5 * 2.5:
            path.unlink()
    assert np.array_equal(lazy.read(4, 6), whole.hu[4:])
    with pytest.raises(ValueError, match=r"IM\d+.dcm"):
        lazy.read(3, 5)


def test_what_cannot_be_read_lazily_is_read_whole(tmp_path):
    volume = oblique()
    with open_volume_writer(tmp_path / "a.nii.gz", ScanSlices.of(volume), derivation=None) as writer:
        writer.write(volume.hu - 1000.0 * (volume.hu < -200))
    assert np.array_equal(open_scan(tmp_path / "a.nii.gz").read(1, 3), read_volume(tmp_path / "a.nii.gz").hu[1:3])
    positions = [(0.0, 0.0, z) for z in (0.0, 2.5, 5.0, 8.0)]
    write_series(tmp_path / "uneven", hu_of((4, 16, 12)), positions=positions)
    with pytest.raises(ValueError, match="resample=True"):
        open_scan(tmp_path / "uneven")
    straight = open_scan(tmp_path / "uneven", resample=True)
    assert np.array_equal(straight.read(0, 2), read_volume(tmp_path / "uneven", resample=True).hu[:2])
    with pytest.raises(FileNotFoundError):
        open_scan(tmp_path / "absent")
