"""A synthetic volume says so in every format, says what makes it again, and is refused where it cannot."""

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from diffusers_ct import CTVolume, ScanConditions
from diffusers_ct.io import Derivation, read_volume, write_volume
from tests.io.synthetic import hu_of, write_series

CONDITIONS = {"body_part": "THORAX", "findings": ["solid_nodule"], "kernel": "a\\3", "text": "x = 1\nDimSize = 9 9 9"}
DERIVATION = Derivation(
    "synthesis by conditional diffusion",
    "0.1",
    model_id="modèle",
    model_revision="sha256:0123456789ab",
    num_inference_steps=30,
    seed=4_294_967_295,
    synthetic=True,
    guidance='{"guidance_scale": 2.0}',
    conditions=json.dumps(CONDITIONS, sort_keys=True),
)


def volume() -> CTVolume:
    conditions = ScanConditions(body_part="THORAX", age_years=61.0, sex="F", kernel="a\\3")
    return CTVolume.from_array(hu_of(), (2.0, 0.5, 0.5), conditions)


def test_dicom_says_synthetic_where_viewers_look_and_how_to_make_it_again(tmp_path):
    folder = write_volume(volume(), tmp_path / "out", derivation=DERIVATION, series_description="x" * 60)
    headers = [pydicom.dcmread(f) for f in sorted(folder.iterdir())]
    assert len(headers) == volume().shape[0]
    for d in headers:
        assert d.SyntheticData == "YES" and d[0x0008, 0x001C].VR == "CS"
        assert d.PatientName == "SYNTHETIC" and d.PatientID == "SYNTHETIC-4294967295"
        assert d.SeriesDescription.startswith("SYNTHETIC x") and len(d.SeriesDescription) == 64
        assert d.ImageType[0] == "DERIVED" and "SourceImageSequence" not in d
        assert (d.BodyPartExamined, d.PatientAge, d.PatientSex) == ("THORAX", "061Y", "F")
        text = d.DerivationDescription
        assert text.startswith("SYNTHETIC, no patient; ")
        for part in (
            "seed=4294967295",
            "model_id=modèle",
            "model_revision=sha256:0123456789ab",
            "Not a medical device",
        ):
            assert part in text
        # what stands between is JSON, whatever its text holds
        start = text.index("conditions=") + len("conditions=")
        assert json.JSONDecoder().raw_decode(text[start:])[0] == CONDITIONS
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    np.testing.assert_allclose(sitk.GetArrayFromImage(reader.Execute()), np.rint(volume().hu))
    assert read_volume(folder).conditions.body_part == "THORAX"


def test_dicom_of_a_restoration_does_not_say_synthetic(tmp_path):
    folder = write_volume(volume(), tmp_path / "out", derivation=Derivation("restoration", "0.1", seed=1))
    for file in folder.iterdir():
        d = pydicom.dcmread(file)
        assert "SyntheticData" not in d and "SYNTHETIC" not in str(d)
    unnamed = write_volume(volume(), tmp_path / "b", derivation=Derivation("synthesis", "0.1", synthetic=True))
    assert pydicom.dcmread(next(unnamed.iterdir())).PatientID == "SYNTHETIC"


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_nifti_holds_the_facts_and_opens_everywhere(tmp_path, name):
    path = write_volume(volume(), tmp_path / name, derivation=DERIVATION)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume().hu)
    (extension,) = image.header.extensions
    assert extension.get_code() == 6
    facts = json.loads(extension.get_content())
    assert facts == DERIVATION.to_dict() and json.loads(facts["conditions"]) == CONDITIONS
    assert bytes(image.header["descrip"]).rstrip(b"\0") == b"SYNTHETIC; synthesis by conditional diffusion"
    other = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(other), volume().hu)
    assert other.GetMetaData("descrip").startswith("SYNTHETIC")
    np.testing.assert_array_equal(read_volume(path).hu, volume().hu)


def test_nifti_of_a_restoration_is_derived_and_one_without_derivation_is_bare(tmp_path):
    path = write_volume(volume(), tmp_path / "a.nii", derivation=Derivation("restoration " + "é" * 90, "0.1"))
    assert bytes(nib.load(path).header["descrip"]).startswith(b"DERIVED; restoration ?")
    bare = nib.load(write_volume(volume(), tmp_path / "b.nii"))
    assert not bare.header.extensions and bytes(bare.header["descrip"]).rstrip(b"\0") == b""


def test_metaimage_holds_the_facts_and_opens_in_simpleitk(tmp_path):
    image = sitk.ReadImage(str(write_volume(volume(), tmp_path / "v.mha", derivation=DERIVATION)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume().hu)
    found = {k.removeprefix("DiffusersCT_"): image.GetMetaData(k) for k in image.GetMetaDataKeys() if "Diff" in k}
    assert found == {name: str(value) for name, value in DERIVATION.to_dict().items()}
    assert json.loads(found["conditions"]) == CONDITIONS and found["synthetic"] == "True"


@pytest.mark.parametrize(
    "text", ["a = b", "DimSize = 1 1 1", "line\r\nDimSize = 1 1 1", "a\nb", "ends with \n", "\n=\n"]
)
def test_no_text_breaks_a_header(tmp_path, text):
    derivation = Derivation(text, "0.1", model_id=text, synthetic=True)
    for name in ("v.mha", "v.nii.gz"):
        image = sitk.ReadImage(str(write_volume(volume(), tmp_path / name, derivation=derivation)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume().hu)
    again = read_volume(tmp_path / "v.mha")
    np.testing.assert_allclose(again.affine_lps, volume().affine_lps, atol=1e-6)
    image = sitk.ReadImage(str(tmp_path / "v.mha"))
    # SimpleITK takes a value's leading "=" for the one between name and value
    assert image.GetMetaData("DiffusersCT_model_id").split() == text.lstrip("=\n").split()


@pytest.mark.parametrize("name", ["out", "v.nii.gz", "v.mha"])
def test_a_patient_s_scan_is_never_marked_synthetic(tmp_path, name):
    write_series(tmp_path / "in", hu_of())
    scan = read_volume(tmp_path / "in")
    for given in ({"volume": scan}, {"volume": volume(), "source": scan}, {"volume": volume(), "source": scan.source}):
        with pytest.raises(ValueError, match="no source scan"):
            write_volume(path=tmp_path / name, derivation=DERIVATION, **given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    start = len(str(Derivation("m", "0.1", conditions="")))
    longest = Derivation("m", "0.1", conditions="x" * (1024 - start))
    header = pydicom.dcmread(next(write_volume(volume(), tmp_path / "a", derivation=longest).iterdir()))
    assert header.DerivationDescription == str(longest) and len(str(longest)) == 1024
    image = sitk.ReadImage(str(write_volume(volume(), tmp_path / "a.mha", derivation=longest)))
    assert image.GetMetaData("DiffusersCT_conditions") == longest.conditions
    with pytest.raises(ValueError, match=r"takes 1025 characters, DICOM holds 1024: shorten"):
        Derivation("m", "0.1", conditions="x" * (1025 - start))
