"""Writing: a new DERIVED series that an independent reader opens, nothing of the patient, nothing half-written."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from diffusers_ct import CTVolume, ScanConditions
from diffusers_ct.io import Derivation, read_volume, write_volume
from diffusers_ct.io.deidentify_profile import DEVICE
from tests.io.identity import found_in, identifying_values
from tests.io.synthetic import SECRETS, hu_of, write_series

DERIVATION = Derivation("restoration", "0.1", model_id="user/repo", model_revision="abc", num_inference_steps=1, seed=7)


@pytest.fixture
def source(tmp_path):
    write_series(tmp_path / "in", hu_of(), orientation=(0.8, 0.6, 0, -0.6, 0.8, 0))
    return read_volume(tmp_path / "in")


def headers(folder) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(f) for f in sorted(folder.iterdir())]


def test_round_trip_keeps_values_and_place(tmp_path, source):
    restored = source.with_hu(source.hu + 0.3)
    again = read_volume(write_volume(restored, tmp_path / "out", source=source, derivation=DERIVATION))
    assert np.abs(again.hu - restored.hu).max() <= 0.5
    np.testing.assert_allclose(again.affine_lps, source.affine_lps, atol=1e-6)
    assert again.conditions.kernel == "B30f" and again.conditions.sex is None
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    np.testing.assert_allclose(image.GetOrigin(), source.affine_lps[:3, 3], atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), source.spacing_mm[::-1], atol=1e-6)
    np.testing.assert_allclose(
        image.GetDirection(), (source.affine_lps[:3, :3] / np.array(source.spacing_mm[::-1])).ravel(), atol=1e-6
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), again.hu)


def test_it_is_a_new_derived_object(tmp_path, source):
    write_volume(source, tmp_path / "out", derivation=DERIVATION)
    old, new = headers(tmp_path / "in"), headers(tmp_path / "out")
    assert {d.SeriesInstanceUID for d in old}.isdisjoint(d.SeriesInstanceUID for d in new)
    assert {d.SOPInstanceUID for d in old}.isdisjoint(d.SOPInstanceUID for d in new)
    assert len({d.SOPInstanceUID for d in new}) == 4 and len({d.SeriesInstanceUID for d in new}) == 1
    for d in new:
        assert d.ImageType[:2] == ["DERIVED", "SECONDARY"] and "BurnedInAnnotation" not in d  # nobody looked
        for part in ("user/repo", "abc", "num_inference_steps=1", "seed=7", "diffusers-ct 0.1", "Not a medical device"):
            assert part in d.DerivationDescription
        assert len(d.SourceImageSequence) == 1
        assert not any(element.tag.is_private for element in d)


def test_nothing_of_the_patient_is_left(tmp_path, source):
    write_volume(source, tmp_path / "out", derivation=DERIVATION)
    identifying = list(SECRETS.values()) + [
        str(d[k].value)
        for d in headers(tmp_path / "in")
        for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    ]
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        for secret in identifying:
            assert secret.encode() not in content
    for d in headers(tmp_path / "out"):
        assert d.PatientIdentityRemoved == "YES" and d.PatientName == "" and "PatientAge" not in d


def test_keep_patient_keeps_the_study_together(tmp_path, source):
    write_volume(source, tmp_path / "out", deidentify="keep_patient")
    old, new = headers(tmp_path / "in")[0], headers(tmp_path / "out")[0]
    assert new.PatientName == old.PatientName and new.StudyInstanceUID == old.StudyInstanceUID
    assert new.FrameOfReferenceUID == old.FrameOfReferenceUID
    references = {d.SourceImageSequence[0].ReferencedSOPInstanceUID for d in headers(tmp_path / "out")}
    assert references == {d.SOPInstanceUID for d in headers(tmp_path / "in")}
    assert "OperatorsName" not in new and "PatientComments" not in new and not any(e.tag.is_private for e in new)


def test_a_class_of_anybody_s_is_not_referred_to(tmp_path):
    made_up = "1.2.826.0.1.3680043.16050116"
    write_series(tmp_path / "in", hu_of(), SOPClassUID=made_up)
    scan = read_volume(tmp_path / "in")
    write_volume(scan, tmp_path / "out")
    assert not any(found_in(f.read_bytes(), {made_up}) for f in (tmp_path / "out").iterdir())
    assert "SourceImageSequence" not in headers(tmp_path / "out")[0]
    write_volume(scan, tmp_path / "kept", deidentify="keep_patient")
    assert headers(tmp_path / "kept")[0].SourceImageSequence[0].ReferencedSOPClassUID == made_up


def test_a_volume_without_source_becomes_a_series_too(tmp_path):
    volume = CTVolume.from_array(hu_of(), (2.0, 0.5, 0.5), ScanConditions(kvp=100.0, kernel="a\\3"))
    again = read_volume(write_volume(volume, tmp_path / "out"))
    np.testing.assert_allclose(again.affine_lps, volume.affine_lps, atol=1e-6)
    assert again.conditions.kernel == "a\\3" and again.conditions.kvp == 100.0


def test_small_values_keep_their_decimals(tmp_path):
    volume = CTVolume.from_array(np.linspace(-2, 3, 64, dtype=np.float32).reshape(1, 8, 8), (1, 1, 1))
    again = read_volume(write_volume(volume, tmp_path / "sd", rescale_slope=0.01))
    assert np.abs(again.hu - volume.hu).max() <= 0.0051


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha"])
def test_files_round_trip_and_simpleitk_agrees(tmp_path, source, name):
    path = write_volume(source.with_hu(source.hu + 0.25), tmp_path / name)
    again = read_volume(path)
    np.testing.assert_array_equal(again.hu, source.hu + 0.25)
    np.testing.assert_allclose(again.affine_lps, source.affine_lps, atol=1e-4)
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(image.GetOrigin(), source.affine_lps[:3, 3], atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), source.hu + 0.25)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("name", ["out", "v.nii.gz", "v.mha"])
def test_nothing_is_overwritten(tmp_path, source, name):
    write_volume(source, tmp_path / name)
    with pytest.raises(FileExistsError, match="not overwritten"):
        write_volume(source, tmp_path / name)


def test_a_crash_leaves_nothing(tmp_path, source, monkeypatch):
    calls = []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", failing)
    with pytest.raises(OSError, match="No space"):
        write_volume(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_refusals(tmp_path, source):
    with pytest.raises(ValueError, match="deidentify"):
        write_volume(source, tmp_path / "a", deidentify="none")
    with pytest.raises(ValueError, match="16 bits"):
        write_volume(source.with_hu(source.hu * 1000), tmp_path / "b")
    with pytest.raises(ValueError, match="slices, the volume"):
        write_volume(source.crop((0, 0, 0), (2, 8, 8)), tmp_path / "c", source=source)
    with pytest.raises(ValueError, match="not written"):
        write_volume(source, tmp_path / "d.dcm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["abdomen_siemens_jpeg2000", "chest_lidc0314_philips", "waterphantom_ge"])
def test_real_series_round_trip_without_their_identity(real_data, tmp_path, name):
    volume = read_volume(real_data / "series" / name)
    again = read_volume(write_volume(volume, tmp_path / "out"))
    np.testing.assert_allclose(again.hu, volume.hu, atol=0.5)
    np.testing.assert_allclose(again.affine_lps, volume.affine_lps, atol=1e-4)
    files = [pydicom.dcmread(f, stop_before_pixels=True) for f in (real_data / "series" / name).iterdir()]
    values = set().union(*(identifying_values(d, kept=DEVICE) for d in files))
    assert len(values) > 10
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        header = content[: len(content) - len(pydicom.dcmread(file).PixelData)]
        assert not found_in(header, values) and not found_in(content, {v for v in values if len(v) >= 8})
