"""NIfTI and MetaImage: independent readers, and headers that lie."""

import gzip
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from diffusers_ct.io import CTReadError, check_output_path, read_volume
from tests.io.synthetic import hu_of


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["ts_example_ct.nii.gz", "ts_example_ct_sm.nii.gz", "3DCT_lung_baseline_small.mha"])
def test_real_files_agree_with_simpleitk(real_data, name):
    path = real_data / "volumes" / name
    ours, theirs = read_volume(path), sitk.ReadImage(str(path))
    np.testing.assert_allclose(ours.affine_lps[:3, 3], theirs.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(ours.spacing_mm[::-1], theirs.GetSpacing(), atol=1e-4)
    values = sitk.GetArrayFromImage(theirs).astype(np.float32)
    kept = values >= -1024
    np.testing.assert_allclose(ours.hu[kept], values[kept], atol=1e-3)


def test_scaled_nifti_is_read_in_hu_and_ras_becomes_lps(tmp_path):
    hu = hu_of((3, 5, 4)).transpose(2, 1, 0)
    image = nib.Nifti1Image(
        hu.astype(np.int16), np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    )
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.spacing_mm == pytest.approx((4.0, 3.0, 2.0))
    np.testing.assert_allclose(volume.affine_lps @ [1, 1, 1, 1], [-12, -23, 34, 1])
    np.testing.assert_array_equal(volume.hu, hu.transpose(2, 1, 0))


def test_what_is_not_in_hu_is_refused_unless_told(tmp_path):
    nib.save(nib.Nifti1Image(np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(CTReadError, match="assume_hu"):
        read_volume(tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz", assume_hu=True).hu.max() == 63


def test_lying_and_damaged_files_are_refused(tmp_path):
    sound = tmp_path / "s.nii"
    nib.save(nib.Nifti1Image(hu_of((4, 16, 16)).astype(np.int16), np.eye(4)), sound)
    data = bytearray(sound.read_bytes())
    cut = tmp_path / "cut.nii"
    cut.write_bytes(data[:600])
    with pytest.raises(CTReadError, match="cut"):
        read_volume(cut)
    data[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()  # dim[1..3]
    for name, content in (("huge.nii", bytes(data)), ("huge.nii.gz", gzip.compress(bytes(data)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CTReadError, match="declares"):
            read_volume(tmp_path / name)
    (tmp_path / "junk.nii.gz").write_bytes(b"junk")
    (tmp_path / "junk.mha").write_bytes(b"junk")
    (tmp_path / "huge.mha").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 30000\nElementType = MET_SHORT\nElementDataFile = LOCAL\nxx"
    )
    for name in ("junk.nii.gz", "junk.mha", "huge.mha"):
        with pytest.raises(CTReadError, match=name):
            read_volume(tmp_path / name)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2, 3), np.float32), np.eye(4)), tmp_path / "5d.nii")
    with pytest.raises(CTReadError, match="three axes"):
        read_volume(tmp_path / "5d.nii")


def test_colours_and_empty_files_are_named_for_what_they_are(tmp_path):
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(CTReadError, match="one number a voxel"):
        read_volume(tmp_path / "rgb.nii")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    with pytest.raises(CTReadError, match="the file is empty"):
        read_volume(tmp_path / "empty.nii.gz")


def test_a_folder_or_an_archive_of_such_files_says_what_to_do(tmp_path):
    nib.save(nib.Nifti1Image(hu_of((4, 16, 16)).astype(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(CTReadError, match=r"it holds NIfTI or MetaImage files \(.*a\.nii\.gz\): name one of them"):
        read_volume(tmp_path)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as out:
        out.write(tmp_path / "a.nii.gz", "a.nii.gz")
    with pytest.raises(CTReadError, match=r"not read within an archive .*: unpack it"):
        read_volume(tmp_path / "s.zip")


@pytest.mark.parametrize("name", ["out.jpg", "out.NRRD", "out.nii.zip", "out.dcm", "out.mhd", "out.h5"])
def test_what_is_not_written_is_refused_before_any_work(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: a .* file is not written: name a folder"):
        check_output_path(tmp_path / name)


def test_folders_with_points_and_what_is_written_pass(tmp_path):
    for name in (
        "scan_dose0.1",
        "study.2024",
        "1.2.840.113",
        "L506_v1.25",
        "a.nii",
        "A.NII.GZ",
        "a.mha",
        "Doe.anonymous",
    ):
        assert check_output_path(tmp_path / name) == tmp_path / name
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="This is a file"):
        check_output_path(tmp_path / "file" / "below" / "out")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which not even root may write")
def test_a_folder_in_which_nothing_can_be_written_is_refused_before_any_work(tmp_path):
    for path in ("/proc/out", "/proc/nope/below/out.nii.gz"):
        with pytest.raises(OSError, match="Nothing can be written in this folder") as error:
            check_output_path(path)
        assert error.value.filename == "/proc"
    check_output_path(tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
