"""Validation of the dose simulation: on a scanner that is itself simulated and so known, and on real scanner pairs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from diffusers_ct.evaluation.simulation_validation import (
    Physics,
    ScannerPair,
    choose_physics,
    i0_per_mas,
    matched_kernels,
    nps,
    predict,
    spectral_correlation,
    validate,
)
from diffusers_ct.evaluation.simulation_validation_report import summary, validation_report
from diffusers_ct.physics import DoseSettings, ParallelBeam, ReconstructionKernel, simulate_low_dose
from tests.io.synthetic import write_series

SIZE, PIXEL_MM = 256, 1.25
I0_PER_MAS = 4000.0
SCANNER = DoseSettings(
    electronic_variance=10.0, modulation_alpha=0.5, kernel=ReconstructionKernel(0.3), count_floor=1.0
)
SHAPES = ((130.0, 75.0, 180.0), (110.0, 90.0, 150.0), (140.0, 100.0, 260.0), (120.0, 80.0, 120.0))  # half axes, mAs


def images(half_x: float, half_y: float, mas: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Full and quarter dose of an ellipse from the known scanner."""
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis, axis)
    full = np.where((x / half_x) ** 2 + (y / half_y) ** 2 < 1, 40.0, -1000.0).astype(np.float32)[None]
    full += np.where(np.abs(x) < half_x * 0.3, 0.0, 20.0).astype(np.float32) * (full > -500)
    kwargs = {
        "spacing_mm": (1.0, PIXEL_MM, PIXEL_MM),
        "settings": DoseSettings.from_dict({**SCANNER.to_dict(), "i0": I0_PER_MAS * mas}),
        "geometry": ParallelBeam((SIZE, SIZE), PIXEL_MM),
    }
    full = simulate_low_dose(full, dose_fraction=1.0, seed=seed + 1000, source_noise="noise_free", **kwargs)
    return full[0], simulate_low_dose(full, dose_fraction=0.25, seed=seed, source_noise="normal_dose", **kwargs)[0]


@pytest.fixture(scope="module")
def pairs() -> list[ScannerPair]:
    made = []
    for k, (half_x, half_y, mas) in enumerate(SHAPES):
        full, low = images(half_x, half_y, mas, seed=50 + k)
        made.append(ScannerPair(f"slice{k}", "known", full, low, PIXEL_MM, mas, "K1", 0.25, SIZE * PIXEL_MM))
    return made


def test_i0_per_mas_is_recovered(pairs):
    kernel = matched_kernels(pairs)["K1"]
    # the matched window has mean 1 below a quarter of Nyquist, the scanner's 1 at zero: the ratio goes into I0
    frequency = np.linspace(0.05, 0.25, 14)
    scale = float(np.mean(SCANNER.window(frequency) / kernel(frequency)))
    found = i0_per_mas(pairs, Physics(modulation_alpha=0.5, bowtie_half_width_rad=None), kernel)
    assert found * scale**2 == pytest.approx(I0_PER_MAS, rel=0.12)


def test_the_modulation_of_the_known_scanner_is_chosen(pairs):
    choices = {"bowtie_half_width_rad": (None, 0.1), "modulation_alpha": (0.0, 0.5, 1.0)}
    chosen, losses = choose_physics(pairs, choices)
    assert (chosen.modulation_alpha, chosen.bowtie_half_width_rad) == (0.5, None)
    assert losses[chosen] <= min(losses.values()) / 0.98 and len(losses) >= 4


def test_every_slice_of_the_known_scanner_is_predicted_from_the_others(pairs):
    predictions, folds = validate(
        pairs, folds=2, choices={"bowtie_half_width_rad": (None,), "modulation_alpha": (0.5,)}
    )
    assert [p.pair.name for p in predictions] == [p.name for p in pairs]
    for p in predictions:
        assert p.ratio == pytest.approx(1.0, abs=0.08)
        assert p.sd_alone_hu is None or p.sd_alone_hu == pytest.approx(p.sd_measured_hu, rel=0.2)
        # few regions: even a perfect prediction does not reach 0.98 on each
        assert p.correlation > p.ceiling[1] - 0.03 > 0.9 and p.ceiling[0] <= 1.0
    for fold in folds:  # nothing that is held out takes part in the choice
        held = {pairs[k].name for k in range(len(pairs)) if k % 2 == fold["fold"]}
        assert held.isdisjoint(fold["calibrated_on"]) and len(fold["calibrated_on"]) == 2
    plain = [{**f, "chosen": vars(f["chosen"])} for f in folds]
    page = validation_report(predictions, plain, {"simulator": "x"})
    assert page.count("data:image/png;base64,") == 1 + len(pairs) and "http" not in page
    assert summary(predictions).startswith("SD from other slices: within 10 % in 4 of 4 slices")
    json.dumps([p.row() for p in predictions])


def test_a_slice_without_siblings_is_predicted_in_shape_alone_and_one_of_an_unknown_kernel_not_at_all(pairs):
    stranger = ScannerPair("s", "other", pairs[0].full_hu, pairs[0].low_hu, PIXEL_MM, None, "K1", 0.25, 320.0)
    made = predict(stranger, pairs, Physics(bowtie_half_width_rad=None), draws=2)
    assert made is not None and made.ratio is None and made.correlation > 0.97 and "shape only" in made.note
    air = ScannerPair("air", "known", np.full((SIZE, SIZE), -1000.0), pairs[0].low_hu, PIXEL_MM, 1.0, "K1", 0.25)
    with pytest.raises(ValueError, match="air shows no region of 64"):
        air.corners()
    unknown = ScannerPair("u", "other", pairs[0].full_hu, pairs[0].low_hu, PIXEL_MM, 100.0, "K2", 0.25, 320.0)
    assert predict(unknown, pairs, Physics(), draws=2) is None


def test_a_wrong_kernel_lowers_the_correlation(pairs):
    sharp = np.random.default_rng(0).normal(size=(1, SIZE, SIZE)) * 30.0
    assert spectral_correlation(nps(pairs[0], sharp), nps(pairs[0], pairs[0].added_hu[None])) < 0.5
    blurred = ndimage.gaussian_filter(sharp, (0, 2.0, 2.0))
    assert spectral_correlation(nps(pairs[0], blurred), nps(pairs[0], pairs[0].added_hu[None])) < 0.9


def _example():
    path = Path(__file__).parents[2] / "examples" / "validate_dose_simulation.py"
    spec = importlib.util.spec_from_file_location("validate_dose_simulation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_reads_pairs_and_leaves_its_report(tmp_path, monkeypatch, capsys):
    for k, (half_x, half_y, mas) in enumerate(SHAPES):
        for dose, hu in zip(("full", "quarter"), images(half_x, half_y, mas, seed=70 + k)):
            made = write_series(
                tmp_path / "pairs" / "known" / dose / f"tmp{k}", np.rint(hu)[None], pixel_mm=(PIXEL_MM, PIXEL_MM),
                SliceThickness="3", Exposure=str(int(mas)), ConvolutionKernel="K1", DataCollectionDiameter="320",
            )  # fmt: skip
            made[0].rename(tmp_path / "pairs" / "known" / dose / f"{k}.IMA")
            made[0].parent.rmdir()
    example = _example()
    monkeypatch.setattr(example, "validate", lambda pairs, **kw: validate(
        pairs, choices={"modulation_alpha": (0.5,), "bowtie_half_width_rad": (None,)}, **kw
    ))  # fmt: skip
    predictions = example.main(
        ["--pairs", str(tmp_path / "pairs"), "--output_dir", str(tmp_path / "out"), "--folds", "2"]
    )
    assert len(predictions) == 4 and "SD from other slices: within 10 % in 4 of 4" in capsys.readouterr().out
    assert "slice" in (tmp_path / "out" / "report.html").read_text()
    assert len(json.loads((tmp_path / "out" / "validation.json").read_text())["slices"]) == 4
    with pytest.raises(SystemExit, match="No pairs"):
        example.main(["--pairs", str(tmp_path / "out"), "--output_dir", str(tmp_path / "out2")])


@pytest.mark.real_data
@pytest.mark.slow
def test_predicts_the_inserted_noise_of_real_slices_from_the_others(real_data):
    # Fixed for speed, to what the example chose in its first fold (alpha 0.2 in the others): kernel and I0 are from other slices,
    # but the physics has seen some of these. With it chosen apart from them, the example has 13 of 14 within 10 %, worst 11.5 %.
    pairs = _example().read_pairs(real_data / "pairs", 0.25)
    physics = Physics(body_reach=0.4, modulation_alpha=0.3, bowtie_half_width_rad=0.14, electronic_variance=10.0)
    made = [predict(pair, [p for p in pairs if p is not pair], physics, draws=3) for pair in pairs]
    predictions = [p for p in made if p is not None]
    print(summary(predictions))
    assert len(predictions) == 15
    # Recorded: SD 0.909 to 1.078 of the measured in all 14 slices whose series has others. NPS: 12 of 15 above 0.98, median
    # 0.993; not reached in the three slices behind shoulders (0.74, 0.84, 0.97), where starved rays leave dark bands.
    ratios = np.array([p.ratio for p in predictions if p.ratio is not None])
    assert len(ratios) == 14 and (np.abs(ratios - 1) < 0.10).sum() >= 13 and np.abs(ratios - 1).max() < 0.13
    both = np.array([p.ratio_of_both for p in predictions if p.ratio_of_both is not None])
    assert (np.abs(both - 1) < 0.10).sum() >= len(both) - 2 and np.abs(both - 1).max() < 0.15
    correlations = np.array([p.correlation for p in predictions])
    assert (correlations > 0.98).sum() >= 12 and np.median(correlations) > 0.99
    # the measure itself is not limited by noise: one draw reaches this with the expectation
    assert all(p.ceiling[0] > 0.99 for p in predictions)
