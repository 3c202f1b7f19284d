"""Several acquisitions, orientations and kernels in one series; copies; DICOMDIR; what is refused and what is chosen."""

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from diffusers_ct.io import DamagedFileError, GeometryError, SeveralSeriesError, list_series, read_volume
from tests.io.synthetic import SECRETS, hu_of, write_series


def test_copies_of_an_instance_are_left_out_with_a_note(tmp_path):
    hu = hu_of()
    paths = write_series(tmp_path / "a", hu)
    for path in paths[:2]:
        shutil.copy(path, tmp_path / f"copy of {path.name}")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    copies, overlap = volume.source.notes
    assert copies.startswith("2 bit-identical copies") and overlap.startswith("slices overlap: SliceThickness")


def test_copies_are_counted_in_the_stack_that_is_read(tmp_path):
    positions = [(0, 0, 2.0 * (k % 4)) for k in range(8)]
    paths = write_series(
        tmp_path / "a", hu_of((8, 32, 24)), positions=positions, AcquisitionNumber=["1"] * 4 + ["2"] * 4
    )
    for path in (*paths[:3], paths[4]):
        shutil.copy(path, tmp_path / f"copy of {path.name}")
    for stack, copies in ((1, "3 bit-identical copies"), (2, "1 bit-identical copy")):
        assert any(note.startswith(copies) for note in read_volume(tmp_path, stack=stack).source.notes)
    assert sorted(s.slices for s in list_series(tmp_path)) == [4, 4]


def test_all_slices_at_one_place_are_counted(tmp_path):
    write_series(tmp_path, hu_of((6, 32, 24)), positions=[(0, 0, 2.0 * (k % 3)) for k in range(6)])
    with pytest.raises(GeometryError, match="6 slices lie at the same position as another"):
        read_volume(tmp_path)


def test_an_element_that_cannot_be_read_is_noted_once_and_names_no_file(tmp_path):
    for path in write_series(tmp_path, hu_of())[:3]:
        data = path.read_bytes()
        assert data.count(b"\x18\x00\x60\x00DS\x04\x00120 ") == 1  # KVP
        path.write_bytes(data.replace(b"\x18\x00\x60\x00DS\x04\x00120 ", b"\x18\x00\x60\x00FD\x04\x00120 "))
    notes = [note for note in read_volume(tmp_path).source.notes if "cannot be read" in note]
    assert notes == ["KVP cannot be read in 3 of 4 files and was left out"]


def test_the_same_instance_with_other_pixels_is_refused(tmp_path):
    paths = write_series(tmp_path, hu_of())
    d = pydicom.dcmread(paths[1])
    d.PixelData = bytes(len(d.PixelData))
    d.save_as(tmp_path / "other.dcm")
    with pytest.raises(GeometryError, match=r"same position.*other\.dcm|other\.dcm.*same position"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("AcquisitionNumber", ["1"] * 4, ["2"] * 4),
        ("TemporalPositionIdentifier", ["1"] * 4, ["2"] * 4),
        ("ConvolutionKernel", "B30f", "B70f"),
        ("KVP", "80", "140"),
        ("ContentTime", ["101000", "101001", "101002", "101003"], ["101130", "101131", "101132", "101133"]),
    ],
)
def test_acquisitions_at_one_place_are_told_apart_and_chosen(tmp_path, name, first, second):
    one, two = hu_of(), hu_of(seed=1)
    write_series(
        tmp_path / "a", one, series_uid="1.2.3", StudyInstanceUID="1.2", FrameOfReferenceUID="1.9", **{name: first}
    )
    write_series(
        tmp_path / "b", two, series_uid="1.2.3", StudyInstanceUID="1.2", FrameOfReferenceUID="1.9", **{name: second}
    )
    with pytest.raises(SeveralSeriesError) as caught:
        read_volume(tmp_path)
    assert "stack=2" in str(caught.value) and name.lower()[-6:] in str(caught.value).lower()
    read = [read_volume(tmp_path, series_uid="1.2.3", stack=k).hu for k in (1, 2)]
    np.testing.assert_array_equal(read[0], one)
    np.testing.assert_array_equal(read[1], two)
    with pytest.raises(SeveralSeriesError, match="no stack 3"):
        read_volume(tmp_path, stack=3)


def test_two_images_at_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    for name in "ab":
        write_series(tmp_path / name, hu_of(), series_uid="1.2.3", StudyInstanceUID="1.2", FrameOfReferenceUID="1.9")
    with pytest.raises(GeometryError, match=r"same position.*move one"):
        read_volume(tmp_path)


def test_step_and_shoot_stays_one_volume(tmp_path):
    hu = hu_of()
    write_series(tmp_path, hu, AcquisitionNumber=["1", "2", "3", "4"])
    np.testing.assert_array_equal(read_volume(tmp_path).hu, hu)


def test_a_series_split_over_folders_is_one_and_orientations_are_apart(tmp_path):
    hu = hu_of((6, 32, 24))
    paths = write_series(tmp_path / "a", hu, series_uid="1.2.3", StudyInstanceUID="1.2")
    (tmp_path / "b").mkdir()
    for path in paths[3:]:
        shutil.move(path, tmp_path / "b" / path.name)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, hu)
    coronal = hu_of((3, 32, 24), seed=2)
    write_series(tmp_path / "c", coronal, series_uid="1.2.3", StudyInstanceUID="1.2", orientation=(1, 0, 0, 0, 0, -1))
    assert [s.difference for s in list_series(tmp_path)] == ["orientation axial", "orientation coronal"]
    np.testing.assert_array_equal(read_volume(tmp_path, stack=2).hu, coronal)


def test_slices_shifted_sideways_are_not_taken_as_straight(tmp_path):
    positions = [(0.0, 0.0, 0.0), (9.0, 0.0, 2.0), (9.0, 0.0, 4.0), (0.0, 0.0, 6.0)]
    write_series(tmp_path, hu_of(), positions=positions)
    with pytest.raises(GeometryError, match="shifted sideways by up to 9"):
        read_volume(tmp_path)


def test_descriptions_lose_the_patient(tmp_path):
    write_series(tmp_path, hu_of(), description=f"CT {SECRETS['PatientID']} Quixote axial")
    description = list_series(tmp_path)[0].description
    assert description == "CT * * axial"


@pytest.mark.filterwarnings("ignore")
def test_a_dicomdir_is_an_index_and_tells_what_is_missing(tmp_path):
    hu = hu_of()
    paths = write_series(
        tmp_path / "in", hu, SeriesNumber="1", InstanceNumber=["1", "2", "3", "4"], StudyID="1", StudyTime="10"
    )
    files = FileSet()
    for path in paths:
        files.add(path)
    files.write(tmp_path / "medium")
    np.testing.assert_array_equal(read_volume(tmp_path / "medium" / "DICOMDIR").hu, hu)
    next(f for f in (tmp_path / "medium").rglob("*") if f.is_file() and f.name != "DICOMDIR").unlink()
    with pytest.raises(DamagedFileError, match="lists 1 images"):
        read_volume(tmp_path / "medium" / "DICOMDIR")


def test_single_slices_far_apart_are_no_volume_even_resampled(tmp_path):
    write_series(tmp_path, hu_of(), positions=[(0, 0, z) for z in (0, 64, 150, 220)])
    with pytest.raises(GeometryError, match=r"3 mm thick.*one by one"):
        read_volume(tmp_path, resample=True)
