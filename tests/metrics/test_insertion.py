"""The insertion test on methods whose effect is known: identity, blur, eraser, forger."""

import numpy as np
import pytest
from scipy import ndimage, stats

from diffusers_ct.metrics.insertion import (
    InsertionCase,
    false_lesion_density,
    insertion_test,
    matched_filter,
    threshold_at,
    with_lesions,
)
from diffusers_ct.metrics.lesion import Lesion, ball_lesion, rod_lesion

PIXEL_MM = 0.7
SD_HU = 12.0
# 5 mm, 20 HU.
LESION = rod_lesion(diameter_mm=5.0, contrast_hu=20.0, pixel_mm=PIXEL_MM, slices=1, edge_sd_mm=0.5)
SHAPE = (16, 160, 160)
PLACES = [(k, i, j) for k in range(16) for i in range(12, 150, 24) for j in range(12, 150, 24)]


def anatomy() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    return np.broadcast_to(40.0 + 30.0 * np.sin(x / 9.0) * np.cos(y / 7.0), SHAPE)


def case(dose_fraction: float, *, seed: int = 0, known: bool = True) -> InsertionCase:
    rng = np.random.default_rng(seed)
    truth = anatomy()
    low = truth + rng.normal(0.0, SD_HU / np.sqrt(dose_fraction), SHAPE)
    return InsertionCase(low, truth + rng.normal(0.0, SD_HU, SHAPE), PLACES, truth if known else None)


def run(method, *, dose_fraction=1.0, lesion=LESION, rate=0.05, known=True):
    return insertion_test(
        method, [case(dose_fraction, known=known)], [lesion], dose_fraction=dose_fraction, false_positive_rate=rate
    )[0]


def response_sd(lesion: Lesion, dose_fraction: float) -> float:
    """Of the matched filter in white noise."""
    return SD_HU / np.sqrt(dose_fraction) * float(np.linalg.norm(lesion.template))


@pytest.mark.parametrize("dose_fraction", [1.0, 0.25, 0.1])
def test_identity_keeps_all_and_errs_as_the_threshold_predicts(dose_fraction):
    faint = rod_lesion(diameter_mm=5.0, contrast_hu=6.0, pixel_mm=PIXEL_MM, slices=1, edge_sd_mm=0.5)
    found = run(lambda image: image, dose_fraction=dose_fraction, lesion=faint)
    n = len(PLACES)
    np.testing.assert_allclose(found.recovery, 1.0, rtol=1e-9)
    assert found.mean_recovery().low == pytest.approx(1.0) and found.erased().events == 0
    sd = response_sd(faint, dose_fraction)
    # An order statistic of 576 normal responses has a standard error of 0.088 SD.
    assert found.threshold / response_sd(faint, 1.0) == pytest.approx(stats.norm.ppf(0.95), abs=4 * 0.088)
    # The rates at the threshold that was drawn, within 4 standard errors.
    for rate, expected in (
        (found.missed(), stats.norm.cdf((found.threshold - 1.0) / sd)),
        (found.false(), stats.norm.sf(found.threshold / sd)),
    ):
        assert rate.estimate == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n) + 1 / n)
        assert rate.low <= rate.estimate <= rate.high and rate.trials == n
    assert found.present.std() == pytest.approx(sd, rel=0.1) and found.present.mean() == pytest.approx(
        1.0, abs=4 * sd / 24
    )
    assert found.missed().events > 30


def test_a_blur_loses_the_known_share():
    """Of a Gaussian lesion of width a, a Gaussian blur of width b leaves <G s, s> / <s, s> = 2 a^2 / (2 a^2 + b^2)."""
    axis = np.arange(-12, 13)
    a, b = 2.5, 2.0
    profile = 15.0 * np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * a**2))
    lesion = Lesion(profile[None], diameter_mm=4.0, contrast_hu=15.0)
    places = [(k, i, j) for k in range(4) for i in (30, 80, 130) for j in (30, 80, 130)]
    images = case(0.25)
    images = InsertionCase(images.low_hu, images.full_hu, places, images.truth_hu)
    blur = lambda image: ndimage.gaussian_filter(image, (0, b, b))  # noqa: E731
    (found,) = insertion_test(blur, [images], [lesion], dose_fraction=0.25, false_positive_rate=0.05)
    np.testing.assert_allclose(found.recovery, 2 * a**2 / (2 * a**2 + b**2), rtol=0.01)
    assert found.erased().events == 0
    strong = lambda image: ndimage.gaussian_filter(image, (0, 5.0, 5.0))  # noqa: E731
    (found,) = insertion_test(strong, [images], [lesion], dose_fraction=0.25, false_positive_rate=0.05)
    np.testing.assert_allclose(found.recovery, 2 * a**2 / (2 * a**2 + 25.0), rtol=0.03)
    assert found.erased().estimate == 1.0


def test_an_eraser_is_caught_with_the_right_interval():
    """It returns the truth: no error measure could be better, and no lesion is left."""
    found = run(lambda image: np.array(anatomy()), dose_fraction=0.25)
    n = len(PLACES)
    assert (found.recovery == 0).all()
    for rate in (found.erased(), found.missed()):
        assert rate.estimate == rate.high == 1.0 and rate.low == pytest.approx(0.025 ** (1 / n))
    assert found.false().events == 0 and found.false().high == pytest.approx(1 - 0.025 ** (1 / n))


def test_a_forger_is_caught():
    """It draws a lesion at a tenth of the places, whatever is there."""
    drawn = PLACES[::10]
    found = run(lambda image: with_lesions(anatomy(), LESION, drawn), dose_fraction=0.25)
    assert found.false().events == len(drawn) and found.erased().estimate == 1.0
    assert found.missed().events == len(PLACES) - len(drawn)


def test_anatomy_is_noise_where_the_truth_is_not_known():
    unknown = run(lambda image: image, known=False)
    known = run(lambda image: image)
    assert unknown.threshold > known.threshold and unknown.missed().estimate > known.missed().estimate
    assert unknown.false().estimate == pytest.approx(0.05, abs=0.04)
    np.testing.assert_allclose(unknown.recovery, 1.0)


def test_a_ball_in_a_volume_is_kept_through_the_slices_or_lost_with_them():
    ball = ball_lesion(diameter_mm=6.0, contrast_hu=30.0, spacing_mm=(2.0, PIXEL_MM, PIXEL_MM), edge_sd_mm=0.5)
    places = [(k, i, j) for k in (4, 11) for i in range(14, 150, 24) for j in range(14, 150, 24)]
    images = case(0.25)
    images = InsertionCase(images.low_hu, images.full_hu, places, images.truth_hu)
    rule = {"dose_fraction": 0.25, "false_positive_rate": 0.05}
    (found,) = insertion_test(lambda image: image, [images], [ball], **rule)
    np.testing.assert_allclose(found.recovery, 1.0)

    def only_the_middle(image):
        kept = np.array(images.low_hu)
        kept[[4, 11]] = image[[4, 11]]
        return kept

    (found,) = insertion_test(only_the_middle, [images], [ball], **rule)
    share = np.sum(ball.profile_hu[len(ball.profile_hu) // 2] ** 2) / np.sum(ball.profile_hu**2)
    np.testing.assert_allclose(found.recovery, share)
    assert 0.3 < share < 0.6 and found.erased().events == (len(places) if share < 0.5 else 0)


def test_results_come_by_lesion_and_know_their_case():
    small = rod_lesion(diameter_mm=3.0, contrast_hu=10.0, pixel_mm=PIXEL_MM, slices=1, edge_sd_mm=0.5)
    calls = []

    def method(image):
        calls.append(image.shape)
        return image

    two = [case(0.25, seed=1), InsertionCase(*(np.zeros(SHAPE),) * 2, PLACES[:7], None)]
    found = insertion_test(method, two, [LESION, small], dose_fraction=0.25, false_positive_rate=0.05)
    assert [r.lesion for r in found] == [LESION, small] and len(calls) == 2 * (1 + 2)
    assert np.bincount(found[0].case).tolist() == [len(PLACES), 7]
    assert found[1].missed().estimate > found[0].missed().estimate  # smaller and fainter


def test_each_case_may_have_its_method():
    cases = [case(1.0, seed=0), case(1.0, seed=1)]
    arguments = {"dose_fraction": 1.0, "false_positive_rate": 0.05}
    (found,) = insertion_test([lambda image: image, lambda image: 0.0 * image], cases, [LESION], **arguments)
    np.testing.assert_allclose(found.recovery, 1.0 - found.case, atol=1e-9)
    with pytest.raises(ValueError, match="for each of the 2 cases"):
        insertion_test([lambda image: image], cases, [LESION], **arguments)


def test_the_matched_filter_is_the_shift_of_a_flat_fit():
    """Independent: least squares of level and lesion over the template's box."""
    rng = np.random.default_rng(3)
    image = rng.normal(50.0, 10.0, (1, 40, 40))
    place = (0, 18, 21)
    box = LESION.template.shape[1:]
    patch = image[0, 18 - box[0] // 2 :, 21 - box[1] // 2 :][: box[0], : box[1]]
    margin = (box[0] - LESION.profile_hu.shape[1]) // 2
    design = np.stack([np.ones(patch.size), np.pad(LESION.profile_hu[0], margin).ravel()], axis=1)
    expected = np.linalg.lstsq(design, patch.ravel(), rcond=None)[0][1]
    assert matched_filter(image, LESION, [place])[0] == pytest.approx(expected, rel=1e-9)
    assert matched_filter(np.full((1, 40, 40), 1000.0), LESION, [place])[0] == pytest.approx(0.0, abs=1e-9)
    assert matched_filter(with_lesions(np.zeros((1, 40, 40)), LESION, [place]), LESION, [place])[0] == pytest.approx(
        1.0
    )


def test_the_threshold_keeps_its_rate_whatever_the_law():
    rng = np.random.default_rng(4)
    draws = rng.exponential(size=(4000, 40))
    above = [row[-1] > threshold_at(row[:-1], false_positive_rate=0.1) for row in draws]
    assert np.mean(above) == pytest.approx(0.1, abs=4 * 0.3 / np.sqrt(4000))
    with pytest.raises(ValueError, match="cannot set a threshold"):
        threshold_at(np.arange(18.0), false_positive_rate=0.05)


def test_a_search_has_the_full_dose_density_where_nothing_was_done_and_more_at_low_dose():
    rng = np.random.default_rng(5)
    shape = (12, 200, 200)
    searched = np.ones(shape, bool)
    settings = {"searched": searched, "pixel_mm": PIXEL_MM, "full_dose_per_cm2": 0.02}
    full = rng.normal(0.0, SD_HU, shape)
    same = false_lesion_density(full, full, LESION, **settings)
    inner = (200 - 2 * (LESION.template.shape[1] // 2)) ** 2 * 12 * PIXEL_MM**2 / 100
    assert same.area_cm2 == pytest.approx(inner) and same.count == int(inner * 0.02)
    other = false_lesion_density(rng.normal(0.0, SD_HU, shape), full, LESION, **settings)
    assert other.low < 0.05 and other.high > 0.008
    low = false_lesion_density(2 * full, full, LESION, **settings)
    assert low.per_cm2 > 5 * same.per_cm2 and low.low > same.high
    none = false_lesion_density(np.zeros(shape), full, LESION, **settings)
    assert none.count == 0 and none.high == pytest.approx(-np.log(0.025) / inner)
    drawn = with_lesions(np.zeros(shape), LESION, [(k, 60, j) for k in range(12) for j in (40, 100, 160)])
    assert false_lesion_density(drawn, full, LESION, **settings).count == 36


def test_rods_and_balls_hold_their_volume_and_contrast():
    rod = rod_lesion(diameter_mm=7.0, contrast_hu=-8.0, pixel_mm=0.6, slices=3, edge_sd_mm=0.8)
    area = np.pi * 3.5**2
    assert rod.profile_hu[1].sum() * 0.6**2 == pytest.approx(-8.0 * area, rel=0.005)
    assert rod.profile_hu.shape[0] == 3 and rod.profile_hu.min() == pytest.approx(-8.0, rel=0.01)
    ball = ball_lesion(diameter_mm=8.0, contrast_hu=30.0, spacing_mm=(2.0, 0.8, 0.8), edge_sd_mm=0.6)
    assert ball.profile_hu.sum() * 2.0 * 0.8**2 == pytest.approx(30.0 * np.pi / 6 * 8.0**3, rel=0.01)
    np.testing.assert_allclose(ball.profile_hu, ball.profile_hu[::-1, ::-1, ::-1], atol=1e-9)
    sharp = ball_lesion(diameter_mm=8.0, contrast_hu=30.0, spacing_mm=(1.0, 1.0, 1.0), edge_sd_mm=0.0)
    assert sharp.profile_hu[5, 5, 5] == pytest.approx(30.0) and sharp.profile_hu[0, 0, 0] == 0.0
    assert ball.template.sum() == pytest.approx(0.0, abs=1e-12)


def test_bad_input_is_refused():
    same = {"dose_fraction": 1.0, "false_positive_rate": 0.05}
    image = np.zeros((1, 60, 60))
    places = [(0, 20, 20), (0, 20, 45)]
    good = InsertionCase(image, image, places, None)
    with pytest.raises(ValueError, match="cannot set a threshold"):
        insertion_test(lambda x: x, [good], [LESION], **same)
    same["false_positive_rate"] = 0.4
    with pytest.raises(ValueError, match="must keep the shape"):
        insertion_test(lambda x: x[0], [good], [LESION], **same)
    with pytest.raises(ValueError, match="not finite"):
        insertion_test(lambda x: x * np.nan, [good], [LESION], **same)
    with pytest.raises(ValueError, match="overlap"):
        insertion_test(lambda x: x, [InsertionCase(image, image, [(0, 20, 20), (0, 24, 20)], None)], [LESION], **same)
    with pytest.raises(ValueError, match="leaves the volume"):
        insertion_test(lambda x: x, [InsertionCase(image, image, [(0, 2, 20), (0, 40, 20)], None)], [LESION], **same)
    with pytest.raises(ValueError, match="full_hu"):
        insertion_test(lambda x: x, [InsertionCase(image, image[0], places, None)], [LESION], **same)
    with pytest.raises(ValueError, match="truth_hu"):
        insertion_test(lambda x: x, [InsertionCase(image, image, places, image[0])], [LESION], **same)
    with pytest.raises(ValueError, match="dose_fraction"):
        insertion_test(lambda x: x, [good], [LESION], dose_fraction=25, false_positive_rate=0.4)
    with pytest.raises(ValueError, match="odd"):
        rod_lesion(diameter_mm=5.0, contrast_hu=20.0, pixel_mm=0.7, slices=2, edge_sd_mm=0.5)
    with pytest.raises(ValueError, match="positive"):
        ball_lesion(diameter_mm=5.0, contrast_hu=20.0, spacing_mm=(1.0, 0.0, 0.7), edge_sd_mm=0.5)
    with pytest.raises(ValueError, match="not 0 everywhere"):
        Lesion(np.zeros((1, 3, 3)), diameter_mm=2.0, contrast_hu=5.0)
    with pytest.raises(ValueError, match="larger region"):
        false_lesion_density(
            image, image, LESION, searched=np.ones(image.shape, bool), pixel_mm=0.7, full_dose_per_cm2=0.01
        )
