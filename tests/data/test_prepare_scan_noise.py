"""`prepare` of normal-dose scans makes the noise that `simulate` makes: I0 and kernel from each scan, told in its row."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffusers_ct import read_volume, write_volume
from diffusers_ct.cli import build_app
from diffusers_ct.cli.wording import in_flags
from diffusers_ct.data import load_paired_ct, prepare_paired_ct, volume_view
from diffusers_ct.physics import DoseSettings, simulate_low_dose
from diffusers_ct.physics.scan_noise import uniform_soft_tissue
from diffusers_ct.volume import CTVolume
from tests.io.synthetic import write_series

SIZE, PIXEL_MM = 160, 1.6
ALL_TRAIN = {"validation_fraction": 0.0, "test_fraction": 0.0}


def clean_hu() -> np.ndarray:
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis, axis)
    return np.stack([np.where((x / 110.0) ** 2 + (y / 80.0) ** 2 < 1, 45.0, -1000.0).astype(np.float32)] * 3)


def check_they_agree(series: Path, tmp_path: Path) -> dict:
    """Prepares and simulates a series at 10 %; gives the row's provenance."""
    asked = ["simulate", series, "--dose", 0.1, "--output", tmp_path / "low", "--seed", 9, "--no-report", "--json"]
    result = CliRunner().invoke(build_app(), list(map(str, asked)))
    assert result.exit_code == 0, result.output
    simulated = json.loads(result.stdout)
    report = prepare_paired_ct(tmp_path / "out", normal_dose=str(series), dose_fractions=(0.1,), **ALL_TRAIN)
    assert report.written == 1 and not report.problems
    rows = load_paired_ct(tmp_path / "out", "train")
    provenance = json.loads(rows[0]["provenance"])
    assert provenance["simulator_from"]["i0"] == "scan" and provenance["simulator_from"]["kernel"] == "matched"
    assert provenance["simulator"]["i0"] == pytest.approx(simulated["i0"], rel=0.02)
    for name, value in simulated["window"].items():
        assert provenance["simulator"]["kernel"][name] == pytest.approx(value, rel=0.02)
    full_hu, low_hu = (volume_view(rows, 0, name).astype(np.float32) for name in ("full", "low"))
    before, after = read_volume(series), read_volume(tmp_path / "low")
    tissue = uniform_soft_tissue(before.hu, before.spacing_mm)
    sd_simulated = (after.hu - before.hu)[tissue].std()
    sd_prepared = (low_hu - full_hu)[uniform_soft_tissue(full_hu, before.spacing_mm)].std()
    assert sd_prepared == pytest.approx(sd_simulated, rel=0.03)
    return provenance


def test_prepare_and_simulate_make_the_same_noise_of_one_scan(tmp_path):
    spacing = (3.0, PIXEL_MM, PIXEL_MM)
    noisy = simulate_low_dose(
        clean_hu(), spacing_mm=spacing, dose_fraction=1.0, seed=1, source_noise="noise_free", settings=DoseSettings(i0=6e4)
    )  # fmt: skip
    series = tmp_path / "series"
    write_series(series, np.rint(noisy), pixel_mm=(PIXEL_MM, PIXEL_MM), increment_mm=3.0, SliceThickness="3")
    provenance = check_they_agree(series, tmp_path)
    assert provenance["simulator"]["i0"] == pytest.approx(6e4, rel=0.25)  # far from the 5e5 of `DoseSettings`
    with pytest.raises(ValueError, match=r"other settings \(`i0`, `kernel`\)"):
        prepare_paired_ct(
            tmp_path / "out", normal_dose=str(series), dose_fractions=(0.1,), i0=5e5, kernel="soft", **ALL_TRAIN
        )


@pytest.mark.real_data
def test_they_agree_on_a_real_scan(real_data, tmp_path):
    provenance = check_they_agree(real_data / "series" / "chest_lidc0314_philips", tmp_path)
    assert 1.5e5 < provenance["simulator"]["i0"] < 3.5e5


def test_a_scan_without_measurable_noise_is_left_out_unless_i0_and_kernel_are_given(tmp_path):
    volume = CTVolume.from_array(clean_hu()[:2], (3.0, PIXEL_MM, PIXEL_MM))
    write_volume(volume, tmp_path / "in" / "p1_a.nii.gz")
    asked = ["prepare", tmp_path / "out", "--normal-dose", tmp_path / "in", "--patient-from-name", "^(p1)_", "--dose", 0.25,
             "--num-workers", 0, "--validation-fraction", 0, "--test-fraction", 0, "--assume-hu"]  # fmt: skip
    result = CliRunner().invoke(build_app(), list(map(str, asked)))
    assert isinstance(result.exception, ValueError)
    assert "no noise in its uniform soft tissue" in str(result.exception)
    assert "fixed for all scans by --i0 N and --kernel NAME. Left out." in in_flags(str(result.exception), "prepare")
    result = CliRunner().invoke(build_app(), list(map(str, [*asked, "--i0", "3e5", "--kernel", "sharp"])))
    assert result.exit_code == 0, result.output
    provenance = json.loads(load_paired_ct(tmp_path / "out", "train")[0]["provenance"])
    assert provenance["simulator_from"]["i0"] == provenance["simulator_from"]["kernel"] == "given"
    assert provenance["simulator"]["i0"] == 3e5 and provenance["simulator"]["kernel"] == "sharp"
    result = CliRunner().invoke(build_app(), list(map(str, asked)))  # the same folder from each scan's own noise
    assert "other settings" in str(result.exception)


def test_unknown_kernels_and_i0_by_another_way_are_refused():
    source = {"phantoms": 1, "dose_fractions": (0.25,)}
    with pytest.raises(ValueError, match=r"Unknown `kernel` 'B30f': choose one of smooth, soft, sharp"):
        prepare_paired_ct("never made", **source, kernel="B30f")
    with pytest.raises(ValueError, match="`i0` must be positive"):
        prepare_paired_ct("never made", **source, i0=-1.0)
    with pytest.raises(ValueError, match="Unknown settings of the simulation"):
        prepare_paired_ct("never made", **source, simulation={"i0": 1e5})
