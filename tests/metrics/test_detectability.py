"""Observers against the closed form in white and in coloured noise; intervals against their nominal coverage."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from diffusers_ct.metrics.channels import (
    channel_outputs,
    dense_dog_channels,
    gabor_channels,
    laguerre_gauss_channels,
    regions_around,
)
from diffusers_ct.metrics.detectability import channelised_hotelling, dose_at, dose_equivalence, exact_d_prime
from diffusers_ct.metrics.noise_power import noise_power_spectrum
from diffusers_ct.metrics.roc import (
    auc,
    auc_difference,
    auc_interval,
    auc_of_d_prime,
    d_prime_of_auc,
    draw_counts,
    resampled_auc,
)
from diffusers_ct.physics import DoseSettings, simulate_low_dose

PIXEL_MM = 0.7
SIDE = 31
AXIS = (np.arange(SIDE) - SIDE // 2) * PIXEL_MM
RADIUS = np.hypot(AXIS[:, None], AXIS[None, :])
BANKS = {
    "laguerre-gauss": laguerre_gauss_channels(roi_pixels=SIDE, pixel_mm=PIXEL_MM, width_mm=4.0, count=5),
    "dense DoG": dense_dog_channels(roi_pixels=SIDE, pixel_mm=PIXEL_MM, first_sd_per_mm=0.03, count=6),
    "gabor": gabor_channels(
        roi_pixels=SIDE, pixel_mm=PIXEL_MM, center_frequencies_per_mm=(0.067, 0.134, 0.268), orientations=4
    ),
}


def signal(contrast_hu: float, sd_mm: float = 2.0) -> np.ndarray:
    return contrast_hu * np.exp(-(RADIUS**2) / (2 * sd_mm**2))


def white(rng: np.random.Generator, count: int, sd_hu: float = 20.0) -> np.ndarray:
    return rng.normal(40.0, sd_hu, (count, SIDE, SIDE))


def d_prime_in_white_noise(signal_hu: np.ndarray, channels: np.ndarray, sd_hu: float = 20.0) -> float:
    """d'^2 = dv^T K^-1 dv with dv = U^T s and K = sigma^2 U^T U."""
    u = channels.reshape(len(channels), -1)
    dv = u @ signal_hu.ravel()
    return math.sqrt(dv @ np.linalg.solve(sd_hu**2 * (u @ u.T), dv))


@pytest.mark.parametrize("bank", BANKS)
def test_white_noise_has_the_closed_form(bank):
    rng = np.random.default_rng(0)
    channels, s = BANKS[bank], signal(9.0)
    truth = d_prime_in_white_noise(s, channels)
    assert 0.65 < auc_of_d_prime(truth) < 0.95
    study = channelised_hotelling(white(rng, 1500) + s, white(rng, 1500), channels=channels, seed=1)
    exact = exact_d_prime(white(rng, 1500) + s, white(rng, 1500), channels=channels)
    assert study.auc == pytest.approx(auc_of_d_prime(truth), abs=0.03) and study.auc_interval().low < study.auc
    assert exact.estimate == pytest.approx(truth, rel=0.12) and truth in exact
    # A channel with the signal's own form makes it the ideal observer: d' = |s| / sigma.
    own = np.concatenate([channels, s[None]])
    assert d_prime_in_white_noise(s, own) == pytest.approx(np.linalg.norm(s) / 20.0)
    assert truth <= np.linalg.norm(s) / 20.0


def test_coloured_noise_has_the_closed_form_and_a_blur_cannot_add_detectability():
    rng = np.random.default_rng(1)
    channels, s = BANKS["laguerre-gauss"], signal(8.0)

    def blur(images):
        return ndimage.gaussian_filter(images, (0.0, 2.0, 2.0)[-images.ndim :], mode="wrap")

    # On the torus the blur is symmetric, so U^T B n has covariance sigma^2 (B U)^T (B U).
    b = blur(channels).reshape(len(channels), -1)
    dv = channels.reshape(len(channels), -1) @ blur(s).ravel()
    truth = math.sqrt(dv @ np.linalg.solve(400.0 * (b @ b.T), dv))
    assert truth <= np.linalg.norm(s) / 20.0
    found = exact_d_prime(blur(white(rng, 1000) + s), blur(white(rng, 1000)), channels=channels)
    assert truth in found and found.estimate == pytest.approx(truth, rel=0.1)
    assert blur(white(rng, 50)).std() < 4.0  # while four fifths of the noise are gone


def test_in_fbp_noise_it_has_the_detectability_that_the_noise_power_spectrum_predicts():
    """Independent: K = U^* NPS U / area over frequencies, the spectrum from other realisations of simulated FBP noise."""
    size, count = 128, 100
    y, x = np.indices((size, size)) - 63.5
    water = np.where(np.hypot(y, x) * PIXEL_MM < 40.0, 0.0, -1000.0).astype(np.float32)
    scanner = DoseSettings(i0=1e4, electronic_variance=0.0)
    noise = simulate_low_dose(
        np.repeat(water[None], 3 * count, axis=0), spacing_mm=(1.0, PIXEL_MM, PIXEL_MM), dose_fraction=1.0, seed=0,
        source_noise="noise_free", settings=scanner,
    ) - water  # fmt: skip
    corners = [(k, 32, 32) for k in range(2 * count, 3 * count)]
    power = noise_power_spectrum(noise, pixel_mm=PIXEL_MM, corners=corners, roi_pixels=64, detrend="mean")
    regions = regions_around(noise, center=(64, 64), roi_pixels=SIDE)
    s = signal(8.0)
    for channels in BANKS.values():
        spectra = np.fft.fft2(channels, (64, 64)).reshape(len(channels), -1)
        covariance = ((spectra.conj() * power.power_hu2mm2.ravel()) @ spectra.T).real / (64 * PIXEL_MM) ** 2
        dv = channels.reshape(len(channels), -1) @ s.ravel()
        predicted = math.sqrt(dv @ np.linalg.solve(covariance, dv))
        found = exact_d_prime(regions[:count] + s, regions[count : 2 * count], channels=channels, level=0.99)
        assert 0.7 < auc_of_d_prime(predicted) < 0.98
        assert predicted in found and found.estimate == pytest.approx(predicted, rel=0.3)


def test_groups_go_to_one_half_and_copies_teach_the_observer_nothing():
    rng = np.random.default_rng(14)
    channels = BANKS["laguerre-gauss"]
    present, absent = (np.repeat(white(rng, 12), 20, axis=0) for _ in range(2))
    groups = (np.repeat(np.arange(12), 20), np.repeat(np.arange(12), 20))
    # Without a signal: copies of the training images in the other half are rated as if they were known.
    leaking = np.mean([channelised_hotelling(present, absent, channels=channels, seed=k).auc for k in range(20)])
    honest = [channelised_hotelling(present, absent, channels=channels, seed=k, groups=groups) for k in range(20)]
    assert leaking > 0.7 and np.mean([one.auc for one in honest]) < 0.55
    for half in (outputs for one in honest for outputs in one.outputs):
        assert [len(np.unique(kind, axis=0)) for kind in half] == [6, 6]
    single = channelised_hotelling(present, absent, channels=channels, seed=3)
    alone = channelised_hotelling(present, absent, channels=channels, seed=3, groups=(np.arange(240), np.arange(240)))
    assert single.auc == alone.auc


def test_no_signal_is_a_coin_even_with_many_channels_and_few_images():
    rng = np.random.default_rng(2)
    channels = rng.normal(size=(24, SIDE, SIDE))
    studies, naive, exact = [], [], []
    for k in range(60):
        present, absent = white(rng, 30), white(rng, 30)
        studies.append(channelised_hotelling(present, absent, channels=channels, seed=k).auc)
        exact.append(exact_d_prime(present, absent, channels=channels))
        v1, v0 = channel_outputs(present, channels), channel_outputs(absent, channels)
        weights = np.linalg.solve(np.cov(v1.T) + np.cov(v0.T), v1.mean(0) - v0.mean(0))
        naive.append(auc(v1 @ weights, v0 @ weights))
    assert np.mean(studies) == pytest.approx(0.5, abs=4 * np.std(studies) / np.sqrt(60)) and np.std(studies) < 0.12
    assert np.mean(naive) > 0.85  # the trap: rated on the images that trained it
    with pytest.raises(ValueError, match="cannot train"):  # where that would say 1.000
        channelised_hotelling(present, absent, channels=rng.normal(size=(60, SIDE, SIDE)), seed=0)
    assert np.mean([e.low == 0.0 for e in exact]) > 0.9


@pytest.mark.parametrize("contrast_hu", [0.0, 4.0, 9.0])
def test_the_exact_interval_covers_the_true_detectability(contrast_hu):
    rng = np.random.default_rng(3)
    channels, s = BANKS["laguerre-gauss"], signal(contrast_hu)
    truth = d_prime_in_white_noise(s, channels)
    # The outputs alone, drawn from their own law (Cholesky), as regions of 1 x 1 pixel would be too slow to draw.
    u = channels.reshape(5, -1)
    root = np.linalg.cholesky(400.0 * (u @ u.T))
    unit = np.eye(5)[:, None]  # channels that pick the pixels of (1, 5) regions
    hits, squares = 0, []
    for _ in range(300):
        absent, present = rng.normal(size=(2, 30, 5)) @ root.T
        found = exact_d_prime((present + u @ s.ravel())[:, None], absent[:, None], channels=unit)
        hits += truth in found
        squares.append(found.estimate**2)
    assert 0.915 <= hits / 300 <= 0.985  # 95 % +- 3 SE
    assert np.mean(squares) >= truth**2 - 4 * np.std(squares) / math.sqrt(300)
    if contrast_hu == 9.0:  # nowhere cut at 0: unbiased
        assert np.mean(squares) == pytest.approx(truth**2, abs=4 * np.std(squares) / math.sqrt(300))


def test_the_held_out_interval_covers_the_auc_of_the_trained_observers():
    rng = np.random.default_rng(4)
    channels, s = BANKS["laguerre-gauss"], signal(7.0)
    u = channels.reshape(5, -1)
    covariance = 400.0 * (u @ u.T)
    root, dv, unit = np.linalg.cholesky(covariance), u @ s.ravel(), np.eye(5)[:, None]
    hits = 0
    for k in range(200):
        absent, present = rng.normal(size=(2, 60, 5)) @ root.T
        present = present + dv
        study = channelised_hotelling(present[:, None], absent[:, None], channels=unit, seed=k)
        truths = []
        order = np.random.default_rng(k)  # the same split, to know the observers it trained
        halves = [np.array_split(v[order.permutation(60)], 2) for v in (present, absent)]
        for h in (0, 1):
            v1, v0 = halves[0][h], halves[1][h]
            w = np.linalg.solve(np.cov(v1.T) + np.cov(v0.T), v1.mean(0) - v0.mean(0))
            truths.append(auc_of_d_prime(w @ dv / math.sqrt(w @ covariance @ w)))
        hits += np.mean(truths) in study.auc_interval()
    assert 0.90 <= hits / 200 <= 0.985


def test_internal_noise_divides_detectability():
    rng = np.random.default_rng(5)
    channels, s = BANKS["laguerre-gauss"], signal(10.0)
    present, absent = white(rng, 3000) + s, white(rng, 3000)
    clean = channelised_hotelling(present, absent, channels=channels, seed=0)
    noisy = channelised_hotelling(present, absent, channels=channels, seed=0, internal_noise=1.5)
    assert noisy.d_prime == pytest.approx(clean.d_prime / math.sqrt(1 + 1.5**2), rel=0.1)
    exact = (
        exact_d_prime(present, absent, channels=channels),
        exact_d_prime(present, absent, channels=channels, internal_noise=1.5),
    )
    assert exact[1].estimate == pytest.approx(exact[0].estimate / math.sqrt(3.25), rel=1e-12)


def test_a_paired_difference_is_narrower_and_finds_a_worse_method():
    rng = np.random.default_rng(6)
    channels, s = BANKS["laguerre-gauss"], signal(9.0)
    absent = white(rng, 400)
    present = white(rng, 400) + s
    worse = [images + rng.normal(0.0, 20.0, images.shape) for images in (present, absent)]  # d' / sqrt(2)
    one = channelised_hotelling(present, absent, channels=channels, seed=3)
    two = channelised_hotelling(*worse, channels=channels, seed=3)
    difference = two.auc_difference(one)
    d = d_prime_in_white_noise(s, channels)
    assert difference.estimate == pytest.approx(two.auc - one.auc, abs=1e-12)
    assert auc_of_d_prime(d / math.sqrt(2)) - auc_of_d_prime(d) in difference and difference.high < 0
    apart = math.hypot(*(i.high - i.low for i in (one.auc_interval(), two.auc_interval())))
    assert difference.high - difference.low < 0.9 * apart
    assert one.auc_difference(one).high == 0.0


def test_dose_equivalence_is_exact_for_quantum_noise():
    doses = np.array([0.05, 0.1, 0.25, 0.5, 1.0])
    for dose in (0.02, 0.1, 0.37, 0.9):
        assert dose_at(1.7 * math.sqrt(dose), doses=doses, d_primes=1.7 * np.sqrt(doses)) == pytest.approx(dose)
    assert dose_at(1.71, doses=doses, d_primes=1.7 * np.sqrt(doses)) == math.inf
    assert dose_at(0.0, doses=doses, d_primes=np.sqrt(doses)) == 0.0
    # A step that goes down is levelled at the mean of d'^2, and the lowest dose that reaches it counts.
    assert dose_at(2.0, doses=np.array([1.0, 2.0, 3.0]), d_primes=np.sqrt([5.0, 3.0, 9.0])) == pytest.approx(1.0)


def ratings(rng, d_prime: float, count: int):
    """A study of normal channel outputs: regions of 5 pixels, each with its channel, one of them with the signal."""
    present, absent = rng.normal(size=(2, count, 1, 5))
    present[..., 0] += d_prime
    return channelised_hotelling(present, absent, channels=np.eye(5)[:, None], seed=0)


def test_the_interval_of_the_equivalent_dose_covers_it():
    """With 50 images for 5 channels: an interval that takes the trained observers as given covers 85 % here."""
    rng = np.random.default_rng(7)
    doses, truth, hits, found = (0.1, 0.25, 0.5, 1.0), 0.35, 0, []
    for k in range(100):
        plain = {dose: ratings(rng, 1.8 * math.sqrt(dose), 100) for dose in doses}
        method = ratings(rng, 1.8 * math.sqrt(truth), 100)
        interval = dose_equivalence(method, plain, resamples=120, seed=k)
        hits += truth in interval
        found.append(interval.estimate)
    assert 0.90 <= hits / 100 <= 0.99
    assert np.median(found) == pytest.approx(truth, rel=0.15)


def test_the_bootstrap_trains_anew_on_what_it_drew():
    rng = np.random.default_rng(14)
    study = ratings(rng, 1.2, 24)
    drawn = study.bootstrap(6, np.random.default_rng(3))
    redraw = np.random.default_rng(3)
    counts = [[draw_counts(12, 6, redraw) for _ in range(2)] for _ in range(2)]
    for k in range(6):
        halves = [[np.repeat(v, c[k], axis=0) for v, c in zip(*pair)] for pair in zip(study.outputs, counts)]
        aucs = []
        for train in (0, 1):
            v1, v0 = halves[train]
            weights = np.linalg.solve(np.cov(v1.T) + np.cov(v0.T), v1.mean(0) - v0.mean(0))
            aucs.append(auc(*(v @ weights for v in halves[1 - train])))
        assert drawn[k] == pytest.approx(np.mean(aucs), abs=1e-9)
    with pytest.raises(ValueError, match="Too few"):
        ratings(rng, 1.2, 12).bootstrap(10, rng)


def test_a_method_beyond_the_highest_dose_has_no_upper_end():
    rng = np.random.default_rng(8)
    plain = {dose: ratings(rng, math.sqrt(dose), 400) for dose in (0.25, 0.5)}
    interval = dose_equivalence(ratings(rng, 2.0, 400), plain, resamples=200, seed=0)
    assert interval.estimate == math.inf and interval.high == math.inf
    with pytest.raises(ValueError, match="channels or realisations"):
        dose_equivalence(ratings(rng, 1.0, 300), plain, resamples=200, seed=0)
    with pytest.raises(ValueError, match="below 1"):
        dose_equivalence(ratings(rng, 20.0, 400), plain, resamples=200, seed=0)


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(9)
    present, absent = rng.integers(0, 12, 40) + 2, rng.integers(0, 12, 31)
    pairs = np.sign(present[:, None] - absent[None, :])
    assert auc(present, absent) == pytest.approx((pairs.mean() + 1) / 2)
    statistic = stats.mannwhitneyu(present, absent).statistic
    assert auc(present, absent) == pytest.approx(statistic / (40 * 31))


def test_delongs_variance_is_the_covariance_of_placements_and_the_bootstrap_agrees():
    rng = np.random.default_rng(10)
    present, absent = rng.normal(1.0, 1.0, 150), rng.normal(0.0, 1.0, 120)
    wins = present[:, None] > absent[None, :]
    sd = math.sqrt(wins.mean(1).var(ddof=1) / 150 + wins.mean(0).var(ddof=1) / 120)
    interval = auc_interval(present, absent, method="delong")
    logit = [math.log(x / (1 - x)) for x in (interval.low, interval.estimate, interval.high)]
    theta = interval.estimate
    assert logit[2] - logit[1] == pytest.approx(logit[1] - logit[0])
    assert logit[2] - logit[1] == pytest.approx(1.959964 * sd / (theta * (1 - theta)), rel=1e-6)
    counts = draw_counts(150, 4000, rng), draw_counts(120, 4000, rng)
    drawn = resampled_auc(present, absent, *counts)
    assert drawn.std() == pytest.approx(sd, rel=0.06)
    again = auc(np.repeat(present, counts[0][7]), np.repeat(absent, counts[1][7]))
    assert drawn[7] == pytest.approx(again, abs=1e-12)
    other = auc_difference(present, absent, present, rng.permutation(absent))
    assert other.estimate == pytest.approx(0.0, abs=1e-12) and other.high > 0


@pytest.mark.parametrize("method", ["delong", "newcombe"])
@pytest.mark.parametrize("d_prime", [0.0, 1.2, 2.2])
def test_intervals_of_the_auc_cover_it(method, d_prime):
    rng = np.random.default_rng(11)
    draws = rng.normal(size=(600, 2, 40))
    hits = [auc_of_d_prime(d_prime) in auc_interval(p + d_prime, a, method=method) for p, a in draws]
    assert 0.92 <= np.mean(hits) <= 0.985


def test_a_perfect_auc_keeps_an_interval():
    interval = auc_interval(np.arange(10.0) + 50, np.arange(10.0), method="newcombe")
    assert interval.estimate == interval.high == 1.0 and 0.7 < interval.low < 0.95
    one = auc_interval(np.array([2.0]), np.array([1.0]), method="newcombe")
    assert one.high == 1.0 and one.low < 0.25
    with pytest.raises(ValueError, match="newcombe"):
        auc_interval(np.arange(10.0) + 50, np.arange(10.0), method="delong")
    assert d_prime_of_auc(auc_of_d_prime(1.3)) == pytest.approx(1.3)


def test_laguerre_gauss_channels_are_orthonormal():
    bank = laguerre_gauss_channels(roi_pixels=101, pixel_mm=0.3, width_mm=6.0, count=5).reshape(5, -1)
    np.testing.assert_allclose(bank @ bank.T * 0.3**2, np.eye(5), atol=1e-6)


def test_dense_dog_channels_have_the_bands_of_the_paper():
    first, side, pixel = 0.05, 201, 0.5
    bank = dense_dog_channels(roi_pixels=side, pixel_mm=pixel, first_sd_per_mm=first, count=5)
    spectra = np.fft.fft2(np.fft.ifftshift(bank, axes=(1, 2)), axes=(1, 2)).real * pixel**2
    axis = np.fft.fftfreq(side, pixel)
    f = np.hypot(axis[:, None], axis[None, :])
    for j, spectrum in enumerate(spectra):
        sd = first * 1.4**j
        expected = np.exp(-(f**2) / (2 * (1.67 * sd) ** 2)) - np.exp(-(f**2) / (2 * sd**2))
        inside = f < 0.5 / pixel
        np.testing.assert_allclose(spectrum[inside], expected[inside], atol=0.01)


def test_gabor_channels_are_one_octave_wide_and_turn():
    side, pixel = 255, 1.0
    bank = gabor_channels(roi_pixels=side, pixel_mm=pixel, center_frequencies_per_mm=(3 / 32,), orientations=4)
    assert bank.shape == (4, side, side)
    np.testing.assert_allclose(bank[2], bank[0].T, atol=1e-12)  # 90 degrees
    line = np.abs(np.fft.fft(np.pad(bank[0].sum(axis=0), (0, 8192 - side))))[:2048]
    f = np.fft.fftfreq(8192, pixel)[:2048]
    band = f[line >= line.max() / 2]
    assert f[line.argmax()] == pytest.approx(3 / 32, rel=0.01)
    assert band[-1] / band[0] == pytest.approx(2.0, rel=0.03)


def test_a_constant_background_changes_nothing():
    rng = np.random.default_rng(12)
    present, absent = white(rng, 40) + signal(9.0), white(rng, 40)
    kept = {"channels": BANKS["laguerre-gauss"], "seed": 0}
    gradient = 30.0 + np.linspace(-50, 50, SIDE)[None]
    a = channelised_hotelling(present, absent, **kept)
    b = channelised_hotelling(present + gradient, absent + gradient, **kept)
    assert a.auc == b.auc


def test_regions_are_cut_around_the_place():
    images = np.arange(2 * 20 * 30).reshape(2, 20, 30)
    regions = regions_around(images, center=(10, 4), roi_pixels=5)
    assert regions.shape == (2, 5, 5) and regions[1, 2, 2] == images[1, 10, 4]
    with pytest.raises(ValueError, match="leaves the image"):
        regions_around(images, center=(10, 1), roi_pixels=5)
    with pytest.raises(ValueError, match="odd"):
        regions_around(images, center=(10, 4), roi_pixels=4)


def test_bad_input_is_refused():
    rng = np.random.default_rng(13)
    channels = BANKS["laguerre-gauss"]
    good = white(rng, 20)
    with pytest.raises(ValueError, match="cannot train"):
        channelised_hotelling(good[:8], good[:8], channels=channels, seed=0)
    with pytest.raises(ValueError, match="cannot train"):
        exact_d_prime(good[:4], good[:4], channels=channels)
    with pytest.raises(ValueError, match="depend on each other"):
        exact_d_prime(good, good[::-1], channels=np.concatenate([channels, channels[:1]]))
    with pytest.raises(ValueError, match="fainter"):
        exact_d_prime(good + signal(1e6), white(rng, 20), channels=channels)
    with pytest.raises(ValueError, match="must agree"):
        channelised_hotelling(good[:, 1:], good, channels=channels, seed=0)
    with pytest.raises(ValueError, match="finite"):
        channelised_hotelling(good * np.nan, good, channels=channels, seed=0)
    with pytest.raises(ValueError, match="internal_noise"):
        channelised_hotelling(good, good, channels=channels, seed=0, internal_noise=-1.0)
    with pytest.raises(ValueError, match="groups"):
        channelised_hotelling(good, good, channels=channels, seed=0, groups=(np.arange(20), np.arange(19)))
    with pytest.raises(ValueError, match="increasing"):
        dose_at(1.0, doses=np.array([0.5, 0.25]), d_primes=np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        dose_at(1.0, doses=np.array([0.5]), d_primes=np.array([np.inf]))
    with pytest.raises(ValueError, match="width_mm"):
        laguerre_gauss_channels(roi_pixels=31, pixel_mm=0.7, width_mm=0.0, count=5)
    with pytest.raises(ValueError, match="level"):
        auc_interval(np.ones(3), np.ones(3), method="newcombe", level=95)
