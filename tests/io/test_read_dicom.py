"""Reading DICOM: closed-form geometry on made series, an independent reader on real ones, and every refusal."""

import contextlib

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.io import (
    CTReadError,
    DamagedFileError,
    GeometryError,
    NotCTError,
    SeveralSeriesError,
    list_series,
    read_volume,
)
from diffusers_ct.io.dicom_read import conditions_of
from tests.io.synthetic import SECRETS, hu_of, write_series


def test_values_geometry_and_conditions_of_a_shuffled_series(tmp_path):
    hu = hu_of()
    write_series(tmp_path, hu, slope=2.0, intercept=-1000.0)
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.hu, hu, atol=1.0)  # one stored unit of 2 HU
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.6))
    expected = np.array([[0.6, 0, 0, -50], [0, 0.7, 0, -40], [0, 0, 2.5, 100], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.affine_lps, expected, atol=1e-9)
    c = volume.conditions
    assert (c.body_part, c.kernel, c.kvp, c.tube_current_mas, c.manufacturer) == ("CHEST", "B30f", 120.0, 150.0, "ACME")
    assert (c.age_years, c.sex, c.slice_thickness_mm) == (90.0, "F", 3.0)
    assert SECRETS["PatientName"] not in repr(volume)


@pytest.mark.parametrize(
    ("tags", "name", "expected"),
    [
        # an Age String counts days, weeks, months or years (PS3.5 6.2); what is stored are completed years
        ({"PatientAge": "061Y"}, "age_years", 61.0), ({"PatientAge": "018M"}, "age_years", 1.0),
        ({"PatientAge": "036M"}, "age_years", 3.0), ({"PatientAge": "052W"}, "age_years", 0.0),
        ({"PatientAge": "053W"}, "age_years", 1.0), ({"PatientAge": "730D"}, "age_years", 1.0),
        ({"PatientAge": "003D"}, "age_years", 0.0), ({"PatientAge": "000Y"}, "age_years", None),
        ({"PatientAge": "61"}, "age_years", None), ({"PatientAge": ""}, "age_years", None),
        # Exposure is in mAs, ExposureInuAs in uAs; the product of time and current stands in for both
        ({"Exposure": None, "ExposureInuAs": "43500"}, "tube_current_mas", 43.5),
        ({"Exposure": "150", "ExposureInuAs": "43500"}, "tube_current_mas", 150.0),
        ({"Exposure": "0", "ExposureTime": "500", "XRayTubeCurrent": "264"}, "tube_current_mas", 132.0),
        ({"Exposure": None, "XRayTubeCurrent": "264"}, "tube_current_mas", None),
        ({"KVP": "0"}, "kvp", None), ({"KVP": "-1"}, "kvp", None), ({"KVP": None}, "kvp", None),
        ({"SliceThickness": "0"}, "slice_thickness_mm", None),
        ({"PatientSex": "o"}, "sex", "O"), ({"PatientSex": "D"}, "sex", None), ({"PatientSex": ""}, "sex", None),
        ({"BodyPartExamined": "abdomen "}, "body_part", "ABDOMEN"), ({"BodyPartExamined": ""}, "body_part", None),
        ({"ConvolutionKernel": ["Br38f", "3", "", ""]}, "kernel", "Br38f\\3\\\\"),
        ({"ConvolutionKernel": None}, "kernel", None), ({"Manufacturer": " "}, "manufacturer", None),
        ({"ContrastBolusAgent": "ISOVUE300/100"}, "contrast_agent", True), ({}, "contrast_agent", None),
        ({"ContrastBolusAgent": ""}, "contrast_agent", None), ({"ContrastBolusAgent": "none"}, "contrast_agent", False),
    ],
)  # fmt: skip
def test_each_condition_is_read_and_what_says_nothing_is_unknown(tmp_path, tags, name, expected):
    write_series(tmp_path, hu_of((2, 16, 16)), **tags)
    conditions = read_volume(tmp_path).conditions
    assert getattr(conditions, name) == expected
    # headers state none of these
    assert (conditions.dose_fraction, conditions.contrast_phase, conditions.text) == (None, None, None)
    assert conditions.findings == conditions.findings_absent == ()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pairs/mayo_L096_D45f_3mm/full/000020.IMA",
         {"body_part": "CHEST", "sex": "O", "tube_current_mas": 188.0, "kvp": 120.0, "kernel": "D45f",
          "manufacturer": "SIEMENS", "slice_thickness_mm": 3.0}),
        ("series/abdomen_siemens_jpeg2000",
         {"body_part": "PARTIALBODY", "tube_current_mas": 253.0, "kvp": 120.0, "kernel": "Br38f\\3",
          "manufacturer": "SIEMENS", "slice_thickness_mm": 3.0, "contrast_agent": True}),
        ("series/chest_lidc0314_philips",
         {"body_part": "CHEST", "sex": "F", "tube_current_mas": 300.0, "kvp": 120.0, "kernel": "D",
          "manufacturer": "Philips", "slice_thickness_mm": 1.0}),
        # no Exposure here: 2000 ms x 180 mA
        ("series/head_ge_tilt_variable_spacing",
         {"body_part": "HEAD", "tube_current_mas": 360.0, "kvp": 120.0, "kernel": "STD+",
          "manufacturer": "GE MEDICAL SYSTEMS", "slice_thickness_mm": 4.0}),
        # a phantom aged "000Y"
        ("series/waterphantom_ge",
         {"sex": "M", "tube_current_mas": 32.0, "kvp": 120.0, "kernel": "STANDARD",
          "manufacturer": "GE MEDICAL SYSTEMS", "slice_thickness_mm": 5.0}),
        ("singles/nysbu_A046441_axial_19010101-23.dcm",
         {"body_part": "CHEST", "age_years": 72.0, "sex": "M", "tube_current_mas": 43.0, "kvp": 120.0, "kernel": "FC17",
          "manufacturer": "TOSHIBA", "slice_thickness_mm": 5.0}),
        ("singles/chest_minimal_header.dcm", {"slice_thickness_mm": 1.0}),
    ],
)  # fmt: skip
def test_conditions_of_real_scans_of_four_vendors(real_data, name, expected):
    file = real_data / name
    if file.is_dir():
        file = next(f for f in sorted(file.iterdir()) if f.is_file())
    header = pydicom.dcmread(file, stop_before_pixels=True)
    assert conditions_of(header) == ScanConditions(**expected)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, -0.6, 0.8, 0)])
def test_any_orientation_keeps_its_place(tmp_path, orientation):
    hu = hu_of()
    write_series(tmp_path, hu, orientation=orientation)
    volume = read_volume(tmp_path)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    np.testing.assert_array_equal(volume.hu, hu)
    place = volume.affine_lps @ np.array([5, 7, 2, 1.0])
    expected = np.array([-50.0, -40.0, 100.0]) + 5 * 0.6 * row + 7 * 0.7 * column + 2 * 2.5 * normal
    np.testing.assert_allclose(place[:3], expected, atol=1e-6)


def test_slope_and_intercept_may_change_from_slice_to_slice(tmp_path):
    hu = np.full((2, 16, 16), 100.0, np.float32)
    write_series(tmp_path, hu, intercept=-1024.0, RescaleIntercept=["-1024", "-924"])
    np.testing.assert_array_equal(read_volume(tmp_path).hu[:, 0, 0], [100.0, 200.0])


@pytest.mark.parametrize("padding", [-3024, -2048, -2000, -1500])
def test_padding_becomes_air(tmp_path, padding):
    hu = hu_of()
    hu[:, -3:] = padding
    write_series(tmp_path / "named", hu, intercept=0.0, PixelPaddingValue=padding)
    write_series(tmp_path / "unnamed", hu, intercept=0.0)
    for name in ("named", "unnamed"):
        read = read_volume(tmp_path / name).hu
        assert (read[:, -3:] == -1000.0).all() and read.min() == -1000.0
    np.testing.assert_array_equal(read[:, :-3], hu[:, :-3])


def test_several_series_are_listed_and_chosen(tmp_path):
    write_series(tmp_path / "a", hu_of(), series_uid="1.2.3.4", description="thin")
    write_series(tmp_path / "b", hu_of((6, 32, 24)), series_uid="1.2.3.5", description="thick")
    write_series(tmp_path / "scout", hu_of((1, 32, 24)), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(SeveralSeriesError) as error:
        read_volume(tmp_path)
    text = str(error.value)
    assert "4 slices" in text and "'thick'" in text and "1.2.3.5" in text and "series_uid" in text
    assert not any(secret in text for secret in SECRETS.values())
    assert read_volume(tmp_path, series_uid="1.2.3.5").shape == (6, 32, 24)
    assert [s.slices for s in list_series(tmp_path)] == [6, 4, 1]
    with pytest.raises(SeveralSeriesError, match=r"no series 9\.9"):
        read_volume(tmp_path, series_uid="9.9")


def test_localizers_are_left_out_and_reformats_apart(tmp_path):
    write_series(tmp_path, hu_of(), series_uid="1.2.3")
    write_series(tmp_path / "x", hu_of((1, 40, 40)), series_uid="1.2.3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert read_volume(tmp_path).shape == (4, 32, 24)
    write_series(tmp_path / "y", hu_of((3, 32, 24)), series_uid="1.2.9", ImageType=["DERIVED", "SECONDARY", "MPR"])
    with pytest.raises(SeveralSeriesError, match="reformat"):
        read_volume(tmp_path)
    with pytest.raises(NotCTError, match="localizer"):
        read_volume(tmp_path / "x")


def test_clutter_beside_the_slices_is_ignored_but_a_damaged_slice_is_not(tmp_path):
    paths = write_series(tmp_path, hu_of())
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    assert read_volume(tmp_path).shape == (4, 32, 24)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    with pytest.raises(CTReadError, match=paths[1].name):
        read_volume(tmp_path)


def test_missing_uneven_and_doubled_slices_are_refused_with_their_numbers(tmp_path):
    hu = hu_of((5, 16, 16))

    def at(zs):
        return [(0.0, 0.0, z) for z in zs]

    write_series(tmp_path / "missing", hu, positions=at([0, 2, 4, 8, 10]))
    with pytest.raises(GeometryError, match=r"1 of 6 slices missing.*2\.00 mm.*4\.00 mm"):
        read_volume(tmp_path / "missing", resample=True)
    write_series(tmp_path / "uneven", hu, positions=at([0, 2, 4, 7, 10]))
    with pytest.raises(GeometryError, match=r"2\.00 to 3\.00 mm.*resample=True"):
        read_volume(tmp_path / "uneven")
    write_series(tmp_path / "doubled", hu, positions=at([0, 2, 2, 4, 6]))
    with pytest.raises(GeometryError, match="same position"):
        read_volume(tmp_path / "doubled", resample=True)


def test_uneven_spacing_is_interpolated_where_asked(tmp_path):
    zs = np.array([0.0, 2.0, 4.0, 7.0, 10.0])
    hu = np.zeros((5, 16, 16), np.float32) + 10.0 * zs[:, None, None]  # HU rise by 10 a millimetre
    write_series(tmp_path, hu, positions=[(0.0, 0.0, z) for z in zs])
    volume = read_volume(tmp_path, resample=True)
    assert volume.spacing_mm[0] == pytest.approx(2.5)
    np.testing.assert_allclose(volume.hu[:, 8, 8], [0, 25, 50, 75, 100], atol=0.01)


def test_tilt_is_refused_with_its_angle_and_straightened_where_asked(tmp_path):
    # A vertical edge in the patient at y = 0; slices tilted by 15 degrees about x, moved along z.
    angle = np.radians(15.0)
    column = np.array([0.0, np.cos(angle), np.sin(angle)])
    normal = np.cross([1.0, 0.0, 0.0], column)
    pixel, count, size = 1.0, 12, 64
    positions = [np.array([0.0, -32.0, 3.0 * k]) for k in range(count)]
    hu = np.empty((count, size, size), np.float32)
    for k, p in enumerate(positions):
        y = p[1] + np.arange(size) * pixel * column[1]
        hu[k] = np.clip(100.0 * y, -500.0, 500.0)[:, None]  # a ramp in the patient's y
    write_series(
        tmp_path, hu, positions=positions, orientation=(1, 0, 0, *column), pixel_mm=(pixel, pixel), intercept=0.0
    )
    with pytest.raises(GeometryError, match=r"tilt of 15\.0 degrees"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, resample=True)
    steps = volume.affine_lps[:3, :3] / np.array(volume.spacing_mm[::-1])
    np.testing.assert_allclose(steps.T @ steps, np.eye(3), atol=1e-9)
    assert volume.spacing_mm[0] == pytest.approx(3.0 * normal[2], abs=1e-4)
    checked = 0
    for k, j in ((3, 40), (6, 45), (9, 38)):
        place = volume.affine_lps @ np.array([30, j, k, 1.0])
        if abs(place[1]) < 4.5 and volume.hu[k, j, 30] > -999:
            assert volume.hu[k, j, 30] == pytest.approx(100.0 * place[1], abs=3.0)
            checked += 1
    assert checked


def test_a_lone_slice_takes_its_thickness(tmp_path):
    write_series(tmp_path / "a", hu_of((1, 16, 16)))
    assert read_volume(tmp_path / "a").spacing_mm[0] == 3.0
    path = write_series(tmp_path / "b", hu_of((1, 16, 16)), SliceThickness=None)[0]
    with pytest.raises(GeometryError, match="slice_spacing_mm"):
        read_volume(path)
    assert read_volume(path, slice_spacing_mm=1.5).spacing_mm[0] == 1.5


@pytest.mark.parametrize(
    ("tags", "error", "message"),
    [
        ({"Modality": "MR"}, NotCTError, "not CT"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, NotCTError, "MONOCHROME1"),
        ({"NumberOfFrames": "2"}, NotCTError, "multi-frame"),
        ({"RescaleType": "MGML"}, NotCTError, "MGML"),
        ({"RescaleSlope": None}, DamagedFileError, "RescaleSlope"),
        ({"RescaleSlope": "0"}, DamagedFileError, "RescaleSlope"),
        ({"ImagePositionPatient": None}, DamagedFileError, "ImagePositionPatient"),
        ({"Rows": 60000}, DamagedFileError, "declares"),
        ({"Rows": 8}, DamagedFileError, "bytes of pixel data"),
        ({"BitsAllocated": 8}, DamagedFileError, "16 bits"),
        ({"PixelSpacing": ["0", "1"]}, DamagedFileError, "not positive"),
    ],
)
def test_what_is_no_ct_in_hu_is_refused(tmp_path, tags, error, message):
    write_series(tmp_path, hu_of((3, 16, 16)), **tags)
    with pytest.raises(error, match=message) as caught:
        read_volume(tmp_path)
    assert ".dcm" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())


@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_gives_our_error_or_a_right_volume(tmp_path):
    sound = write_series(tmp_path / "s", hu_of((1, 16, 16)))[0].read_bytes()
    rng = np.random.default_rng(0)
    target = tmp_path / "x.dcm"
    for length in (*range(0, len(sound), 97), len(sound) - 1):
        target.write_bytes(sound[:length])
        with pytest.raises(CTReadError):
            read_volume(target)
    for _ in range(150):
        data = bytearray(sound)
        for place in rng.integers(132, len(data) - 512, 3):
            data[place] = rng.integers(256)
        target.write_bytes(bytes(data))
        with contextlib.suppress(CTReadError):
            assert read_volume(target).hu.shape == (1, 16, 16)


def test_nothing_there():
    with pytest.raises(FileNotFoundError):
        read_volume("no/such/place")


# --- real files


def _reference(path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    return reader.Execute()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["abdomen_siemens_jpeg2000", "chest_lidc0314_philips", "waterphantom_ge"])
def test_regular_series_agree_with_simpleitk(real_data, name):
    ours, theirs = read_volume(real_data / "series" / name), _reference(real_data / "series" / name)
    np.testing.assert_allclose(ours.affine_lps[:3, 3], theirs.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(ours.spacing_mm[::-1], theirs.GetSpacing(), atol=1e-3)
    direction = ours.affine_lps[:3, :3] / np.array(ours.spacing_mm[::-1])
    np.testing.assert_allclose(direction.ravel(), theirs.GetDirection(), atol=1e-6)
    values = sitk.GetArrayFromImage(theirs).astype(np.float32)
    kept = values >= -1024
    np.testing.assert_array_equal(ours.hu[kept], values[kept])
    assert (ours.hu[~kept] == -1000.0).all()


@pytest.mark.real_data
def test_every_lossless_encoding_gives_the_same_voxels(real_data):
    folder = real_data / "singles"
    reference = read_volume(folder / "CT1_UNC.explicit_little_endian.dcm").hu
    for name in ("RLE", "JPLL", "JLSL", "J2KR", "UNC.implicit_little_endian", "UNC.explicit_big_endian"):
        np.testing.assert_array_equal(read_volume(folder / f"CT1_{name}.dcm").hu, reference, err_msg=name)
    for name, limit in (("JLSN", 15), ("J2KI", 400)):
        assert np.abs(read_volume(folder / f"CT1_{name}.dcm").hu - reference).max() < limit


@pytest.mark.real_data
def test_every_malformed_file_is_refused_by_name(real_data):
    files = sorted((real_data / "malformed").iterdir())
    assert len(files) == 16
    for file in files:
        with pytest.raises(CTReadError) as caught:
            read_volume(file)
        assert file.name in str(caught.value), file.name


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("series/head_ge_tilt_variable_spacing", r"1\.08 to 7\.00 mm"),
        ("series/headphantom_philips_tilt", r"tilt of 18\.5 degrees"),
        ("series/geometry_tilt_missing_slice_noisepixels", r"1 of 5 slices missing"),
        ("singles/CT0012_enhanced_multiframe_jpegll.dcm", r"frame 1: ImageType \(0008,0008\) says RCBF"),
        ("singles/barre_CT_JPEG70.dcm", "localizer"),
        ("singles/barre_CT_Implicit_Little_Headless_Retired.dcm", "ImageOrientationPatient"),
        ("singles/explicit_VR-UN_pancreas.dcm", "slice_spacing_mm"),
        ("volumes/CT_pitch.nii.gz", "do not look like"),
    ],
)
def test_irregular_real_data_is_refused_with_the_reason(real_data, name, message):
    with pytest.raises(CTReadError, match=message):
        read_volume(real_data / name)


@pytest.mark.real_data
def test_tilted_real_series_is_straightened(real_data):
    volume = read_volume(real_data / "series" / "headphantom_philips_tilt", resample=True)
    header = pydicom.dcmread(real_data / "series" / "headphantom_philips_tilt" / "I220")
    assert volume.spacing_mm[0] == pytest.approx(2.5 * np.cos(np.radians(18.5)), abs=0.01)
    assert volume.spacing_mm[1:] == pytest.approx([float(v) for v in header.PixelSpacing])
    middle = volume.hu[3]
    assert np.median(middle[middle > -500]) > -200


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    ["chest_minimal_header", "nysbu_A002304_axial_19001231-076", "nysbu_A046441_axial_19010101-23", "rtplan_ct.0",
     "philips_skullbase_jpegll", "CT_small"],
)  # fmt: skip
def test_real_single_slices_agree_with_simpleitk(real_data, name):
    file = real_data / "singles" / f"{name}.dcm"
    ours, theirs = read_volume(file), sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
    kept = theirs >= -1024
    if "PixelPaddingValue" in pydicom.dcmread(file, stop_before_pixels=True):
        kept &= theirs != -1024
    np.testing.assert_allclose(ours.hu[kept], theirs[kept], atol=0.01)
