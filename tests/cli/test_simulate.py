"""`diffusers-ct simulate`: a DERIVED low-dose series and its page; what is refused before any work."""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

import diffusers_ct.cli as cli
from diffusers_ct import CTVolume, read_volume, write_volume
from diffusers_ct.derivations import DOSE_ATTRIBUTES
from diffusers_ct.physics import noise_of_scan, simulate_low_dose
from tests.io.synthetic import SECRETS, write_series

SIZE, PIXEL_MM = 160, 1.6
DOSE_TAGS = {"Exposure": "210", "XRayTubeCurrent": "420", "CTDIvol": 14.5, "ExposureInuAs": "210000"}


def scan_hu(slices: int = 3) -> np.ndarray:
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis, axis)
    image = np.where((x / 110.0) ** 2 + (y / 80.0) ** 2 < 1, 45.0, -1000.0).astype(np.float32)
    clean = np.stack([image] * slices)
    return np.rint(
        simulate_low_dose(
            clean, spacing_mm=(3.0, PIXEL_MM, PIXEL_MM), dose_fraction=1.0, seed=1, source_noise="noise_free"
        )
    )


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scan") / "series"
    write_series(folder, scan_hu(), pixel_mm=(PIXEL_MM, PIXEL_MM), increment_mm=3.0, SliceThickness="3", **DOSE_TAGS)
    return folder


def simulate(*arguments: object):
    result = CliRunner().invoke(cli.build_app(), ["simulate", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def test_a_series_becomes_a_noisier_derived_series_with_a_page(series, tmp_path):
    out = tmp_path / "low"
    result = simulate(series, "--dose", 0.1, "--output", out, "--seed", 7)
    assert result.exit_code == 0, result.output
    before, after = read_volume(series), read_volume(out)
    np.testing.assert_allclose(after.affine_lps, before.affine_lps, atol=1e-6)
    ratio = noise_of_scan(after.hu, after.spacing_mm) / noise_of_scan(before.hu, before.spacing_mm)
    assert ratio == pytest.approx(10**0.5, rel=0.12)
    page = (tmp_path / "low_report.html").read_text()
    for text in (
        "calibrated on the scan&#39;s own noise",
        "What was assumed",
        "SD expected",
        "not a medical device",
        "matched",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 2 and "http" not in page
    found = [float(v) for v in re.search(r"<td>after</td><td>([\d.]+)</td><td>([\d.]+)</td>", page).groups()]
    assert found[0] == pytest.approx(found[1], rel=0.12)
    assert found[0] == pytest.approx(noise_of_scan(after.hu, after.spacing_mm), rel=0.01)


def test_the_header_does_not_claim_the_dose_of_the_source_and_names_no_patient(series, tmp_path):
    out = tmp_path / "low"
    assert simulate(series, "--dose", 0.25, "--output", out, "--kernel", "soft", "--i0", 4e5).exit_code == 0
    for file in out.iterdir():
        header = pydicom.dcmread(file)
        assert not [name for name in DOSE_ATTRIBUTES if name in header]
        assert header.ImageType[0] == "DERIVED" and header.KVP == 120
        text = header.DerivationDescription
        settings = json.loads(text[text.index("{") : text.rindex("}") + 1])
        assert settings["dose_fraction"] == 0.25 and settings["i0"] == 4e5 and settings["i0_from"] == "given"
        assert settings["source_exposure_mas"] == 210 and settings["source_ctdivol_mgy"] == 14.5
        assert "seed=0" in text and settings["kernel"] == "soft" and settings["source_noise"] == "normal_dose"
        raw = file.read_bytes()
        assert not [secret for secret in SECRETS.values() if secret.encode() in raw]
    page = (tmp_path / "low_report.html").read_bytes()
    assert not [secret for secret in SECRETS.values() if secret.encode() in page]
    assert read_volume(out).conditions.tube_current_mas is None
    assert read_volume(series).conditions.tube_current_mas == 210


def test_nifti_and_metaimage_keep_their_kind_and_the_default_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    volume = CTVolume.from_array(scan_hu(2), (3.0, PIXEL_MM, PIXEL_MM))
    for suffix in (".nii.gz", ".mha"):
        write_volume(volume, tmp_path / f"scan{suffix}")
        result = simulate(tmp_path / f"scan{suffix}", "--dose", 0.5, "--no-report", "--kernel", "soft")
        assert result.exit_code == 0, result.output
        image = sitk.ReadImage(str(tmp_path / f"low_dose_0.5{suffix}"))
        assert image.GetSize() == (SIZE, SIZE, 2)
    assert not list(tmp_path.glob("*report*"))
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"low_dose_0.5{s}"))) for s in (".nii.gz", ".mha"))
    np.testing.assert_allclose(a, b, atol=1.0)


def test_the_scans_name_is_in_nothing_that_is_written_unless_the_user_gives_it(tmp_path, monkeypatch):
    scans, here = tmp_path / "Mueller", tmp_path / "here"
    options = ("--dose", 0.5, "--kernel", "soft", "--i0", 3e5)
    write_volume(CTVolume.from_array(scan_hu(1), (3.0, PIXEL_MM, PIXEL_MM)), scans / "Mueller_Hans.nii.gz")
    write_series(scans / "Mueller_Hans", scan_hu(1), pixel_mm=(PIXEL_MM, PIXEL_MM), SliceThickness="3")
    for name, expected in (("Mueller_Hans", "low_dose_0.5"), ("Mueller_Hans.nii.gz", "low_dose_0.5.nii.gz")):
        (here / expected).mkdir(parents=True)
        monkeypatch.chdir(here / expected)
        assert simulate(scans / name, *options).exit_code == 0
        assert {path.name for path in Path().iterdir()} == {expected, "low_dose_0.5_report.html"}
    for path in here.rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        assert "mueller" not in path.name.lower()
        plain = gzip.decompress(content) if path.suffix == ".gz" else content
        assert b"mueller" not in (content + plain).lower() and b"hans" not in (content + plain).lower()
    with pytest.raises(FileExistsError, match="name the result with --output"):
        raise simulate(scans / "Mueller_Hans.nii.gz", *options).exception


def test_mistakes_are_refused_before_any_work(series, tmp_path, monkeypatch):
    def refusal(*arguments: object) -> str:
        result = simulate(*arguments)
        assert result.exit_code == 1 and isinstance(result.exception, ValueError | OSError)
        assert cli.is_users_mistake(result.exception)
        return str(result.exception)

    out = tmp_path / "out"
    monkeypatch.setattr("diffusers_ct.physics.scan_simulation.simulate_scan", None)
    assert "--dose must be above 0 and below 1" in refusal(series, "--dose", 1.0, "--output", out)
    assert "--kernel must be one of smooth, soft, sharp, matched" in refusal(series, "--dose", 0.1, "--kernel", "B30f")
    assert "--preset must be one of corediff" in refusal(series, "--dose", 0.1, "--preset", "siemens")
    assert "--geometry" in refusal(series, "--dose", 0.1, "--geometry", "cone")
    assert "--source-noise" in refusal(series, "--dose", 0.1, "--source-noise", "none")
    assert "--deidentify" in refusal(series, "--dose", 0.1, "--deidentify", "maybe")
    assert "--i0 must be positive" in refusal(series, "--dose", 0.1, "--i0", 0)
    for name in ("out.dcm", "out.jpg", "out.nrrd"):
        assert "name a folder" in refusal(series, "--dose", 0.1, "--output", tmp_path / name)
    assert "no file or folder" in refusal(tmp_path / "nowhere", "--dose", 0.1, "--output", out)
    page = tmp_path / "out_report.html"
    page.write_text("mine")
    assert "report exists" in refusal(series, "--dose", 0.1, "--output", out) and page.read_text() == "mine"
    out.mkdir()
    assert "not overwritten" in refusal(series, "--dose", 0.1, "--output", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out_report.html"]


def test_without_matplotlib_it_says_what_to_install(series, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find_spec(name, *a)
    )
    result = simulate(series, "--dose", 0.1, "--output", tmp_path / "out")
    assert 'pip install "diffusers-ct[report]"' in str(result.exception) and "--no-report" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_what_reading_found_odd_is_told_and_stands_on_the_page(tmp_path):
    folder, out = tmp_path / "Quixote" / "series", tmp_path / "low"
    paths = write_series(folder, scan_hu(), pixel_mm=(PIXEL_MM, PIXEL_MM), SpacingBetweenSlices="7", KVP=None)
    (folder / "copy.dcm").write_bytes(paths[0].read_bytes())
    result = simulate(folder, "--dose", 0.5, "--output", out, "--kernel", "soft", "--i0", 3e5)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "low_report.html").read_text()
    for text in (
        "1 bit-identical copy of images left out",
        "SpacingBetweenSlices (0018,0088) is 7 mm",
        "KVP (0018,0060)",
    ):
        assert f"note: {text[0].upper()}{text[1:]}" in result.output and text in page.partition("What was assumed")[2]
    assert "Quixote" not in page and str(tmp_path) not in page


def test_coarse_pixels_name_the_file_and_the_flags_that_help(tmp_path):
    coarse_hu = scan_hu().reshape(3, SIZE // 2, 2, SIZE // 2, 2).mean(axis=(2, 4))
    path = write_volume(CTVolume.from_array(coarse_hu, (3.0, 3.2, 3.2)), tmp_path / "coarse.nii.gz")
    out = tmp_path / "out.nii.gz"
    for options in ((), ("--i0", 3e5)):
        message = str(simulate(path, "--dose", 0.1, "--output", out, *options).exception)
        assert message.startswith(f"{path}: Pixels of 3.2 mm are too coarse") and "`kernel`" in message
    result = simulate(path, "--dose", 0.1, "--output", out, "--kernel", "soft", "--i0", 3e5)
    assert result.exit_code == 0 and read_volume(out).shape == coarse_hu.shape, result.output


def test_a_body_beyond_the_field_or_the_image_is_told(tmp_path):
    options = ("--dose", 0.5, "--i0", 3e5, "--no-report", "--kernel")
    hu = scan_hu(1)
    wide = np.kron(hu, np.ones((1, 1, 2)))[:, :, 10:-10]  # 550 x 200 mm with pixels of 2 mm
    for name, image, pixel_mm, extra, told in (
        ("whole", hu, PIXEL_MM, (), None),
        ("continued", hu[:, :, 40:-40], PIXEL_MM, (), None),
        ("cut", hu[:, :, 40:-40], PIXEL_MM, ("--no-complete-body",), "cuts the body off at its left and right border"),
        ("above", hu[:, 60:], PIXEL_MM, (), "cuts the body off at its upper border"),
        ("parallel", wide, 2.0, (), None),
        ("fan", wide, 2.0, ("--geometry", "fan"), "out of the measured field, which is 502 mm wide"),
    ):
        path = write_volume(CTVolume.from_array(image, (3.0, pixel_mm, pixel_mm)), tmp_path / f"{name}.nii.gz")
        result = simulate(path, *options, "soft", *extra, "--output", tmp_path / f"{name}_low.nii.gz")
        assert result.exit_code == 0, result.output
        notes = [line for line in result.output.splitlines() if line.startswith("note:")]
        assert [told in note for note in notes] == ([] if told is None else [True]), (name, notes)


def test_values_without_air_and_a_slice_without_thickness_have_their_flags(series, tmp_path):
    body = CTVolume.from_array(scan_hu(1)[:, 48:-48, 40:-40], (3.0, PIXEL_MM, PIXEL_MM))
    path = write_volume(body, tmp_path / "body.nii.gz")
    options = ("--dose", 0.5, "--i0", 3e5, "--no-report", "--kernel", "soft")
    assert "assume_hu" in str(simulate(path, *options, "--output", tmp_path / "a.mha").exception)
    assert simulate(path, *options, "--assume-hu", "--output", tmp_path / "a.mha").exit_code == 0
    write_series(tmp_path / "one", scan_hu(1), pixel_mm=(PIXEL_MM, PIXEL_MM), SliceThickness=None)
    assert "slice_spacing_mm" in str(simulate(tmp_path / "one", *options, "--output", tmp_path / "b").exception)
    assert simulate(tmp_path / "one", *options, "--slice-thickness", 3, "--output", tmp_path / "b").exit_code == 0
    assert read_volume(tmp_path / "b").spacing_mm[0] == 3.0


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "slices"), [("chest_lidc0314_philips", 16), ("abdomen_siemens_jpeg2000", 20)])
def test_real_series_become_derived_series_of_the_same_geometry(real_data, tmp_path, name, slices):
    source, out = real_data / "series" / name, tmp_path / "low"
    result = simulate(source, "--dose", 0.1, "--output", out)
    assert result.exit_code == 0, result.output
    before, after = (
        sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))) for folder in (source, out)
    )
    assert after.GetSize() == before.GetSize() == (512, 512, slices)
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(after, get)(), getattr(before, get)(), atol=1e-4)
    page = (tmp_path / "low_report.html").read_text()
    found, expected = map(float, re.search(r"<td>after</td><td>([\d.]+)</td><td>([\d.]+)</td>", page).groups())
    assert found == pytest.approx(expected, rel=0.1)  # recorded: -5 % and -2 %


@pytest.mark.real_data
def test_a_real_nifti_and_a_single_slice(real_data, tmp_path):
    for file, options in (
        (real_data / "volumes" / "ts_example_ct_sm.nii.gz", ["--kernel", "smooth"]),  # 3 mm pixels show no kernel
        (real_data / "singles" / "philips_skullbase_jpegll.dcm", ["--no-report"]),
        (real_data / "singles" / "chest_minimal_header.dcm", ["--kernel", "sharp", "--i0", "3e5"]),
    ):
        suffix = ".nii.gz" if file.name.endswith("gz") else ""
        out = tmp_path / f"{file.name.split('.')[0]}{suffix}"
        result = simulate(file, "--dose", 0.2, "--output", out, *options)
        assert result.exit_code == 0, result.output
        assert read_volume(out).shape == read_volume(file).shape
