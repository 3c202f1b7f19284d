"""Enhanced multi-frame CT: exact HU and place whatever the order of the frames, and every header that contradicts itself."""

import numpy as np
import pydicom
import pytest

from diffusers_ct.io import CTReadError, DamagedFileError, NotCTError, SeveralSeriesError, read_volume, write_volume
from tests.io.synthetic import SECRETS, hu_of, write_multiframe


def even(hu):
    return 2 * np.rint(hu / 2)


def test_shuffled_frames_of_two_stacks_with_their_own_rescale(tmp_path):
    one, two = hu_of((5, 16, 12)), hu_of((3, 16, 12), seed=1)
    path = write_multiframe(tmp_path / "e.dcm", {"A": one, "B": two})
    with pytest.raises(SeveralSeriesError, match=r"stack=2 \(StackID B\)"):
        read_volume(path)
    for number, hu, x in ((1, one, -50.0), (2, two, 950.0)):
        volume = read_volume(path, stack=number)
        np.testing.assert_allclose(volume.hu, hu, atol=1.0)  # a stored unit of 2 HU
        assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.6))
        expected = [[0.6, 0, 0, x], [0, 0.7, 0, -40], [0, 0, 2.5, 100], [0, 0, 0, 1]]
        np.testing.assert_allclose(volume.affine_lps, expected, atol=1e-9)
    conditions = read_volume(path, stack=1).conditions
    assert (conditions.kvp, conditions.tube_current_mas, conditions.kernel) == (120.0, 43.5, "B30f")


def test_its_result_is_written_slice_by_slice(tmp_path):
    hu = even(hu_of((4, 16, 12)))
    volume = read_volume(write_multiframe(tmp_path / "e.dcm", {"A": hu}, InstanceNumber="7"))
    assert len(volume.source.headers) == 4
    positions = [float(h.ImagePositionPatient[2]) for h in volume.source.headers]
    numbers = [int(h.ReferencedFrameNumber) for h in volume.source.headers]
    assert sorted(numbers) == [1, 2, 3, 4] == sorted(int(h.InstanceNumber) for h in volume.source.headers)
    assert positions == [100.0, 102.5, 105.0, 107.5]
    again = read_volume(write_volume(volume, tmp_path / "out", source=volume))
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine_lps, volume.affine_lps, atol=1e-6)
    written = b"".join(f.read_bytes() for f in (tmp_path / "out").iterdir())
    assert not any(secret.encode() in written for secret in SECRETS.values())


def test_acquisitions_of_one_stack_are_told_apart_by_the_number_of_each_frame(tmp_path):
    path = write_multiframe(tmp_path / "e.dcm", {"A": hu_of((4, 16, 12)), "B": hu_of((4, 16, 12), seed=1)})
    d = pydicom.dcmread(path)
    d.AcquisitionNumber = "9"
    for item in d.PerFrameFunctionalGroupsSequence:  # both at one place, in one stack
        content, place = item.FrameContentSequence[0], item.PlanePositionSequence[0]
        content.FrameAcquisitionNumber = 1 if content.StackID == "A" else 2
        content.StackID, place.ImagePositionPatient[0] = "A", -50
    d.save_as(path)
    with pytest.raises(SeveralSeriesError, match="AcquisitionNumber 2"):
        read_volume(path)
    np.testing.assert_allclose(read_volume(path, stack=2).hu, hu_of((4, 16, 12), seed=1), atol=1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"NumberOfFrames": "2000000000"}, DamagedFileError, "NumberOfFrames is 2000000000.* describes 4"),
        ({"NumberOfFrames": "3"}, DamagedFileError, "describes 4 frames"),
        ({"PerFrameFunctionalGroupsSequence": []}, NotCTError, "functional groups"),
        ({"SharedFunctionalGroupsSequence": []}, CTReadError, "ImageOrientationPatient|PixelSpacing"),
        ({"Rows": 65535}, DamagedFileError, "declares"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, error, message):
    path = write_multiframe(tmp_path / "e.dcm", {"A": hu_of((4, 16, 12))}, **change)
    with pytest.raises(error, match=message) as caught:
        read_volume(path)
    assert "e.dcm" in str(caught.value)


@pytest.mark.real_data
def test_fragmented_jpeg_frames_of_a_real_object_agree_with_pydicom(real_data, tmp_path):
    d = pydicom.dcmread(real_data / "singles" / "CT0012_enhanced_multiframe_jpegll.dcm")
    expected = d.pixel_array.astype(np.float32) - 1024
    # the map of a perfusion is no HU and refused; the same frames under the name of an image are read
    d.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = [
        "ORIGINAL",
        "PRIMARY",
        "VOLUME",
        "NONE",
    ]
    del d.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    d.save_as(tmp_path / "e.dcm")
    volume = read_volume(tmp_path / "e.dcm")
    # rows point to the right (-x), so the normal points down: the first slice is the upper one, frame 2
    np.testing.assert_array_equal(volume.hu, expected[::-1])
    np.testing.assert_allclose(volume.affine_lps[:3, 3], [99.5, -301.5, -149.0])
    assert volume.spacing_mm == pytest.approx((10.0, 0.388672, 0.388672))
