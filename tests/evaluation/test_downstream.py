"""The downstream task on scores whose AUC is known: Gaussians, of which a lower dose is another spread."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from diffusers_ct import CTVolume, NoiseAwareClassifier, ScanConditions
from diffusers_ct.evaluation.benchmark import Case
from diffusers_ct.evaluation.condition_judge import train_judge
from diffusers_ct.evaluation.downstream import (
    FULL_DOSE,
    LOW_DOSE,
    Region,
    judge_scores,
    load_scores,
    readings,
    run_downstream,
    whole_scan,
)
from diffusers_ct.hounsfield import hu_to_companded
from diffusers_ct.metrics.roc import newcombe_interval

SHIFT, LOW_SD, RESTORED_SD = 2.0, 2.0, 1.0  # of the finding, and of the noise that comes on top of a unit Gaussian
FINDING = "solid_nodule"
WHOLE = ((0, 0, 0), (1, 1, 1))
AGAIN = {"task": "t", "resamples": 300, "seed": 0}


def true_auc(extra_sd: float) -> float:
    return float(norm.cdf(SHIFT / np.sqrt(2.0 * (1.0 + extra_sd**2))))


TRUE_FRACTION = (true_auc(RESTORED_SD) - true_auc(LOW_SD)) / (true_auc(0.0) - true_auc(LOW_SD))


def gaussian_ratings(rng, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Half with the finding; low dose and restoration share the patient and, in part, the noise."""
    present = np.arange(count) < count // 2
    full = SHIFT * present + rng.standard_normal(count)
    noise = rng.standard_normal(count)
    ratings = {FULL_DOSE: full, LOW_DOSE: full + LOW_SD * noise, "restored": full + RESTORED_SD * noise}
    return ratings, present


def one_voxel(hu: float) -> CTVolume:
    return CTVolume.from_array(np.full((1, 1, 1), hu, np.float32), (1.0, 1.0, 1.0))


def one_voxel_cases(seed: int, count: int) -> tuple[list[Case], list[list[Region]]]:
    """Patients whose only voxel is the score, at two doses."""
    ratings, present = gaussian_ratings(np.random.default_rng(seed), count)
    cases, regions = [], []
    for k, (full, low) in enumerate(zip(ratings[FULL_DOSE], ratings[LOW_DOSE])):
        for dose, hu in ((0.1, low), (0.25, 0.5 * (low + full))):
            cases.append(
                Case(
                    f"scan {k}", f"patient {k}", one_voxel(hu), np.full((1, 1, 1), full, np.float32), dose, "same_scan"
                )
            )
            regions.append([Region(bool(present[k]), *WHOLE)])
    return cases, regions


def mean_hu(volume: CTVolume) -> float:
    return float(volume.hu.mean())


def test_areas_and_fraction_are_the_closed_form():
    ratings, present = gaussian_ratings(np.random.default_rng(0), 4000)
    patients = [str(k) for k in range(4000)]
    full, low, restored = readings(ratings, present, patients, resamples=300, seed=0)
    assert [r.images for r in (full, low, restored)] == [FULL_DOSE, LOW_DOSE, "restored"]
    for reading, sd in ((full, 0.0), (low, LOW_SD), (restored, RESTORED_SD)):
        assert reading.auc.estimate == pytest.approx(true_auc(sd), abs=0.012) and true_auc(sd) in reading.auc
    assert restored.minus_low.estimate == pytest.approx(restored.auc.estimate - low.auc.estimate)
    assert true_auc(RESTORED_SD) - true_auc(LOW_SD) in restored.minus_low and low.minus_low is None
    # paired: narrower than two intervals that know nothing of each other
    apart = np.hypot(*(r.auc.high - r.auc.low for r in (restored, low)))
    assert restored.minus_low.high - restored.minus_low.low < 0.8 * apart
    assert full.recovered is None and low.recovered is None
    assert restored.recovered.estimate == pytest.approx(TRUE_FRACTION, abs=0.04) and TRUE_FRACTION in restored.recovered
    assert restored.recovered.high - restored.recovered.low < 0.15


def test_the_interval_of_the_fraction_covers_it():
    rng = np.random.default_rng(1)
    covered, told = 0, 0
    patients = [str(k) for k in range(200)]
    for seed in range(120):
        ratings, present = gaussian_ratings(rng, 200)
        recovered = readings(ratings, present, patients, resamples=200, seed=seed)[2].recovered
        if recovered is not None:
            told += 1
            covered += TRUE_FRACTION in recovered
    assert told >= 118  # at this size the loss shows
    assert 0.89 <= covered / told <= 0.99


def test_nothing_recovers_nothing_and_the_full_dose_recovers_all():
    cases, regions = one_voxel_cases(2, 300)
    methods = {
        "nothing": lambda case: case.low_hu,
        "full": lambda case: case.full_hu,
        "worse": lambda case: case.low_hu * np.random.default_rng(int(case.name[5:])).choice([-1.0, 1.0]),
    }
    rows = run_downstream(cases, regions, methods, mean_hu, **AGAIN)
    assert [(row["group"], row["images"]) for row in rows] == [
        (group, images)
        for group in ("dose 10 %", "dose 25 %")
        for images in (FULL_DOSE, LOW_DOSE, "nothing", "full", "worse")
    ]
    for full, low, nothing, everything, worse in (rows[:5], rows[5:]):
        assert full["recovered_fraction"] is None and low["recovered_fraction"] is None
        assert low["minus_low"] is None and full["minus_low_low"] > 0.0
        for row, value in ((nothing, 0.0), (everything, 1.0)):
            found = row["recovered_fraction"], row["recovered_low"], row["recovered_high"]
            assert found == pytest.approx((value, value, value))
        assert worse["recovered_high"] < 0.0 and worse["minus_low_high"] < 0.0
        assert {"task": "t", "n_patients": 300, "n_present": 150, "n_absent": 150}.items() <= low.items()
    assert rows[0]["auc"] == rows[5]["auc"] and rows[1]["auc"] < rows[6]["auc"]  # more dose, more to see


def test_without_a_clear_loss_there_is_no_fraction():
    rng = np.random.default_rng(3)
    ratings, present = gaussian_ratings(rng, 60)
    ratings[LOW_DOSE] = ratings[FULL_DOSE] + 0.05 * rng.standard_normal(60)
    patients = [str(k) for k in range(60)]
    restored = readings(ratings, present, patients, resamples=500, seed=0)[2]
    assert restored.recovered is None and restored.minus_low is not None
    # and a low dose that is better than the full one has lost nothing either
    ratings[LOW_DOSE], ratings[FULL_DOSE] = ratings[FULL_DOSE], ratings[FULL_DOSE] + 3.0 * rng.standard_normal(60)
    assert readings(ratings, present, patients, resamples=500, seed=0)[2].recovered is None


def test_a_fraction_near_the_limit_has_a_finite_and_wide_interval():
    rng, wide = np.random.default_rng(4), 0
    for seed in range(300):
        ratings, present = gaussian_ratings(rng, 40)
        ratings[LOW_DOSE] = ratings[FULL_DOSE] + 0.8 * rng.standard_normal(40)
        full, _, restored = readings(ratings, present, [str(k) for k in range(40)], resamples=200, seed=seed)
        if restored.recovered is not None and full.minus_low.low < 0.01:
            assert np.isfinite([restored.recovered.low, restored.recovered.high]).all()
            wide += restored.recovered.high - restored.recovered.low > 1.0
    assert wide > 3


def test_regions_of_a_patient_are_one_draw():
    ratings, present = gaussian_ratings(np.random.default_rng(5), 200)
    doubled = {name: np.repeat(values, 2) for name, values in ratings.items()}
    pairs = [str(k // 2) for k in range(400)]
    apart = readings(doubled, np.repeat(present, 2), [str(k) for k in range(400)], resamples=1000, seed=0)
    together = readings(doubled, np.repeat(present, 2), pairs, resamples=1000, seed=0)
    for one, other in zip(together, apart):
        assert one.auc.estimate == other.auc.estimate
        assert one.auc.high - one.auc.low > 1.2 * (other.auc.high - other.auc.low)


@pytest.mark.parametrize("regions_each", [1, 3])
def test_a_perfect_reader_of_few_patients_is_not_certain(regions_each):
    """All of 20 patients right: the AUC may still be less, by Newcombe's bound, however often each was asked."""
    truth = np.arange(20) < 10
    perfect = truth.astype(float)
    poor = np.where(np.arange(20) % 10 < 2, 1.0 - perfect, perfect)
    ratings = {FULL_DOSE: perfect, LOW_DOSE: poor, "perfect": 2.0 * perfect, "reversed": -perfect}
    ratings = {name: np.repeat(values, regions_each) for name, values in ratings.items()}
    patients = np.repeat([f"{k}" for k in range(20)], regions_each).tolist()
    full, low, restored, upside_down = readings(
        ratings, np.repeat(truth, regions_each), patients, resamples=200, seed=0
    )
    bound = newcombe_interval(1.0, 10, 10, level=0.95).low
    assert (restored.auc.estimate, restored.auc.low, restored.auc.high) == pytest.approx((1.0, bound, 1.0))
    assert (upside_down.auc.low, upside_down.auc.high) == pytest.approx((0.0, 1.0 - bound))
    assert low.auc.estimate == pytest.approx(0.8) and low.auc.low < low.auc.high
    for reading in (full, restored):
        difference = reading.minus_low
        assert difference.low < difference.estimate - (1.0 - bound) and difference.high > difference.estimate


def test_two_perfect_kinds_of_image_may_differ_and_nothing_is_said_to_be_recovered():
    cases, regions = [], []
    for k in range(16):
        hu = 100.0 * (k < 8)
        cases.append(
            Case(f"scan {k}", f"patient {k}", one_voxel(hu), np.full((1, 1, 1), hu, np.float32), 0.1, "same_scan")
        )
        regions.append([Region(k < 8, *WHOLE)])
    full, low, same = run_downstream(cases, regions, {"same": lambda case: case.low_hu}, mean_hu, **AGAIN)
    for row in (full, low, same):
        assert row["auc"] == row["high"] == 1.0 and row["low"] < 0.8 and row["recovered_fraction"] is None
    for row in (full, same):
        assert row["minus_low"] == 0.0 and row["minus_low_low"] < -0.2 and row["minus_low_high"] > 0.2


def test_a_fraction_of_a_perfect_full_dose_has_no_ends():
    count = 200
    present = np.arange(count) < count // 2
    noise = np.random.default_rng(8).standard_normal(count)
    cases = [
        Case(f"s{k}", f"p{k}", one_voxel(2.0 * p + 2.0 * n), np.full((1, 1, 1), p, np.float32), 0.1, "same_scan")
        for k, (p, n) in enumerate(zip(present, noise))
    ]
    regions = [[Region(bool(p), *WHOLE)] for p in present]
    half = {"half": lambda case: 0.5 * (case.low_hu + 2.0 * case.full_hu)}
    full, low, restored = run_downstream(cases, regions, half, mean_hu, **AGAIN)
    assert full["auc"] == 1.0 and full["minus_low_low"] > 0.0 and low["auc"] < restored["auc"] < 1.0
    expected = (restored["auc"] - low["auc"]) / (1.0 - low["auc"])
    assert restored["recovered_fraction"] == pytest.approx(expected)
    assert restored["recovered_low"] is None and restored["recovered_high"] is None


def test_the_classifier_sees_the_region_and_not_the_truth():
    hu = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    conditions = ScanConditions(
        body_part="THORAX", findings=(FINDING,), text="a nodule", dose_fraction=0.1, tube_current_mas=20.0
    )
    cases, regions, seen = [], [], []
    for k in range(2):
        low = CTVolume.from_array(hu + k, (2.0, 1.0, 1.0), conditions)
        cases.append(Case(f"scan {k}", f"patient {k}", low, 10.0 * hu, 0.1, "normal_dose"))
        regions.append([Region(True, (1, 1, 2), (2, 2, 3)), Region(False, (0, 0, 0), (1, 1, 1))])

    def scores(volume: CTVolume) -> float:
        seen.append(volume)
        return float(volume.hu.sum())

    rows = run_downstream(cases, regions, {"twice": lambda case: 2.0 * case.low_hu}, scores, **AGAIN)
    assert len(seen) == 2 * 3 * 2 and rows[0]["n_patients"] == 2 and rows[0]["n_present"] == 2
    for image, factor, shift in ((seen[0], 10.0, 0.0), (seen[2], 1.0, 0.0), (seen[10], 2.0, 1.0)):
        np.testing.assert_array_equal(image.hu, factor * (hu + shift)[1:3, 1:3, 2:5])
    for volume in seen:
        assert volume.spacing_mm == (2.0, 1.0, 1.0) and volume.conditions == ScanConditions(body_part="THORAX")


def test_whole_scans_take_their_truth_from_the_conditions():
    def case(**known) -> Case:
        low = CTVolume.from_array(np.zeros((2, 3, 4)), (1.0, 1.0, 1.0), ScanConditions(**known))
        return Case("scan", "patient", low, low.hu, 0.1, "same_scan")

    assert whole_scan(case(findings=(FINDING,)), FINDING) == Region(True, (0, 0, 0), (2, 3, 4))
    assert not whole_scan(case(findings_absent=(FINDING,)), FINDING).present
    with pytest.raises(ValueError, match="scan do not say whether it shows solid_nodule"):
        whole_scan(case(findings=("cyst",)), FINDING)


class Network(torch.nn.Module):
    """A user's own: its weight times the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return self.weight * hu.mean()


def test_a_network_of_ones_own_comes_from_a_file(tmp_path):
    size = torch.export.Dim("size", min=2, max=64)
    program = torch.export.export(Network(), (torch.zeros(1, 1, 2, 8, 8),), dynamic_shapes={"hu": {3: size, 4: size}})
    torch.export.save(program, tmp_path / "own.pt2")
    scores = load_scores(tmp_path / "own.pt2", finding=FINDING)
    assert scores(CTVolume.from_array(np.full((2, 6, 6), 21.0), (1.0, 1.0, 1.0))) == pytest.approx(42.0)
    several = torch.export.export(torch.nn.Identity(), (torch.zeros(1, 1, 2, 8, 8),))
    torch.export.save(several, tmp_path / "several.pt2")
    with pytest.raises(ValueError, match="one number"):
        load_scores(tmp_path / "several.pt2", finding=FINDING)(
            CTVolume.from_array(np.zeros((2, 8, 8)), (1.0, 1.0, 1.0))
        )
    with pytest.raises(ValueError, match=r"own\.onnx is no classifier"):
        load_scores(tmp_path / "own.onnx", finding=FINDING)


def test_the_packages_classifiers_come_from_their_files(tmp_path):
    hu = np.random.default_rng(6).normal(-800.0, 50.0, (2, 16, 16)).astype(np.float32)
    volume = CTVolume.from_array(hu, (1.0, 1.0, 1.0))
    conditions = [ScanConditions(body_part="THORAX", **{key: (FINDING,)}) for key in ("findings", "findings_absent")]
    known = {"body_parts": ("THORAX",), "findings": ("cyst", FINDING)}
    path = tmp_path / "judge.safetensors"
    judge = train_judge([(hu, c) for c in conditions], **known, epochs=1, seed=0, cache=path)
    scores = load_scores(path, finding=FINDING)
    assert scores(volume) == judge_scores(judge, FINDING)(volume)
    assert torch.tensor(scores(volume)).sigmoid().item() == pytest.approx(
        judge.judge([volume]).findings[0, 1], abs=1e-6
    )
    with pytest.raises(ValueError, match="does not know lytic"):
        load_scores(path, finding="lytic")

    torch.manual_seed(0)
    model = NoiseAwareClassifier(findings=("cyst", FINDING), block_out_channels=(8, 8), downsample_strides=(1, 2, 2))
    model.save_pretrained(tmp_path / "classifier")
    wanted = model.eval()(hu_to_companded(torch.from_numpy(hu)[None, None]), 0).findings[0, 1].item()
    assert load_scores(tmp_path / "classifier", finding=FINDING)(volume) == pytest.approx(wanted) != 0.0
    with pytest.raises(ValueError, match="does not judge lytic in images: it judges cyst, solid_nodule"):
        load_scores(tmp_path / "classifier", finding="lytic")


def test_what_would_be_wrong_is_refused():
    cases, regions = one_voxel_cases(7, 4)

    def run(cases=cases, regions=regions, methods=None, scores=mean_hu):
        return run_downstream(cases, regions, methods or {}, scores, **AGAIN)

    truth = Case("scan", "patient", one_voxel(0.0), np.zeros((1, 1, 1), np.float32), 0.1, "noise_free")
    for wrong, message in (
        ({"regions": regions[:-1]}, "8 cases need as many lists of regions"),
        ({"cases": [], "regions": []}, "one at least"),
        ({"methods": {LOW_DOSE: lambda case: case.low_hu}}, "rows of the table already"),
        ({"scores": lambda volume: float("nan")}, "score of scan 0, full dose is nan"),
        ({"regions": [[Region(True, *WHOLE)]] * 8}, "with and without"),
        ({"regions": [[Region(True, (0, 0, 1), (1, 1, 1))]] * 8}, "leaves the volume"),
        ({"cases": [truth], "regions": [[Region(True, *WHOLE)]]}, "noise-free truth"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**wrong)
    with pytest.raises(ValueError, match="full dose and the low dose"):
        readings({"a": np.zeros(2)}, np.array([True, False]), ["a", "b"], resamples=2, seed=0)
