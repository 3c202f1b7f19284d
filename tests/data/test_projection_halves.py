"""Halves of the projections: their mean is the whole, their noise is independent and sqrt(2) times as strong."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import ProjectionHalves, SimulatedProjections, split_reconstructions
from diffusers_ct.data.manifest import features, make_row
from diffusers_ct.hounsfield import hu_to_mu_per_mm, mu_per_mm_to_hu
from diffusers_ct.physics import KERNELS, FanBeam, ParallelBeam, Projector, make_phantom

MATRIX, PIXEL_MM, PHOTONS = (128, 128), 2.8, 5e4
KERNEL = KERNELS["soft"]


@pytest.fixture(scope="module")
def projector():
    return Projector(ParallelBeam(MATRIX, PIXEL_MM, views=240, bins=160, bin_mm=2.8), eps=1e-6)


@pytest.fixture(scope="module")
def rows():
    phantom = make_phantom(0, "abdomen", shape=(2, *MATRIX), spacing_mm=(4.0, PIXEL_MM, PIXEL_MM)).volume
    row = make_row(
        phantom.hu, phantom.hu, scan_key="a", patient_key="p", split="train", dose_fraction=0.25,
        spacing_mm=phantom.spacing_mm, affine_lps=np.eye(4), target="noise_free", conditions=ScanConditions(),
        provenance={},
    )  # fmt: skip
    return Dataset.from_list([{**row, "low": row["low"].tolist(), "full": row["full"].tolist()}], features(MATRIX))


@pytest.fixture(scope="module")
def noise(rows, projector):
    """Noise of both halves and of the whole, in HU, within the body: differences to what clean projections give."""
    clean = projector.forward(torch.from_numpy(hu_to_mu_per_mm(np.asarray(rows[0]["full"][0], dtype=np.float32))))
    noisy = SimulatedProjections(rows, "full", projector, photons=PHOTONS, seed=1)[0]
    difference = noisy - clean
    parts = split_reconstructions(difference, projector, KERNEL)
    whole = projector.fbp(difference, KERNEL)
    y, x = np.indices(MATRIX) - 63.5
    inside = torch.from_numpy(np.hypot(y, x) < 40)
    return [mu_per_mm_to_hu(image)[inside].numpy().astype(np.float64) for image in (*parts, whole)]


def test_the_mean_of_the_parts_is_the_whole(rows, projector):
    sinogram = SimulatedProjections(rows, "full", projector, photons=PHOTONS, seed=1)[1].double()
    whole = projector.fbp(sinogram, KERNEL)
    for parts in (2, 4):
        split = split_reconstructions(sinogram, projector, KERNEL, parts=parts)
        assert split.shape == (parts, *MATRIX)
        assert torch.allclose(split.mean(dim=0), whole, atol=1e-6 * float(whole.abs().max()))
        assert float((split[0] - whole).abs().max()) > 0.01 * float(whole.abs().max())


def test_noise_of_the_halves_is_uncorrelated_and_root_two_as_strong(noise):
    odd, even, whole = noise
    assert abs(np.corrcoef(odd, even)[0, 1]) < 0.03
    for half in (odd, even):
        assert half.std() / whole.std() == pytest.approx(np.sqrt(2), rel=0.03)
    assert whole.std() > 20.0  # there is noise, and far more of it than rounding


def test_halves_of_a_reconstructed_image_would_share_their_noise(projector, noise):
    rng = np.random.default_rng(0)
    sinogram = torch.from_numpy(rng.normal(0.0, 0.02, projector.sinogram_shape).astype(np.float32))
    again = projector.forward(projector.fbp(sinogram, KERNEL))
    odd, even = split_reconstructions(again, projector, KERNEL)[:, 30:-30, 30:-30].flatten(1).numpy()
    assert np.corrcoef(odd, even)[0, 1] > 0.3  # why only projections are split


def test_items_are_the_parts_in_hu(rows, projector):
    projections = SimulatedProjections(rows, "full", projector, photons=PHOTONS, seed=3)
    halves = ProjectionHalves(projections, projector, KERNEL)
    assert len(halves) == 4
    first, second = halves[2], halves[3]
    assert first["input_hu"].shape == (1, 1, *MATRIX) and first["input_hu"].dtype == torch.float32
    assert torch.equal(first["input_hu"], second["target_hu"]) and torch.equal(first["target_hu"], second["input_hu"])
    expected = mu_per_mm_to_hu(split_reconstructions(projections[1], projector, KERNEL))
    assert torch.equal(first["target_hu"][0, 0], expected[0])
    quarters = ProjectionHalves(projections, projector, KERNEL, parts=4)
    item = quarters[1]
    whole = mu_per_mm_to_hu(projector.fbp(projections[0], KERNEL))
    assert torch.allclose((3 * item["input_hu"] + item["target_hu"])[0, 0] / 4, whole, atol=0.5)
    # the object itself is there: HU of the phantom within the noise
    truth = torch.tensor(rows[0]["full"][0], dtype=torch.float32)[50:78, 50:78]
    assert float((item["input_hu"][0, 0, 50:78, 50:78] - truth).mean().abs()) < 15.0


def test_draws_repeat_and_follow_the_photons(rows, projector):
    few, many = (SimulatedProjections(rows, "full", projector, photons=n, seed=1) for n in (1e4, 4e4))
    assert torch.equal(few[0], few[0]) and len(list(few)) == 2
    other = SimulatedProjections(rows, "full", projector, photons=1e4, seed=2)
    assert not torch.equal(few[0], other[0])
    edge = slice(0, 8)  # rays through air: no attenuation, so the variance is 1 / photons
    for projections, photons in ((few, 1e4), (many, 4e4)):
        assert float(projections[0][:, edge].var()) == pytest.approx(1.0 / photons, rel=0.1)
    electronic = SimulatedProjections(rows, "full", projector, photons=1e4, electronic_variance=1e4, seed=1)
    assert float(electronic[0][:, edge].var()) == pytest.approx(2.0 / 1e4, rel=0.1)


def test_what_cannot_be_split_is_refused(rows, projector):
    with pytest.raises(ValueError, match=r"divide the 240 views, got 7"):
        split_reconstructions(torch.zeros(240, 160), projector, KERNEL, parts=7)
    fan = Projector(FanBeam(MATRIX, PIXEL_MM, "arc", views=64, bins=64))
    with pytest.raises(ValueError, match="rebin them"):
        split_reconstructions(torch.zeros(64, 64), fan, KERNEL)
    with pytest.raises(ValueError, match="no projections"):
        ProjectionHalves([], projector, KERNEL)
    with pytest.raises(ValueError, match="`photons` must be positive"):
        SimulatedProjections(rows, "full", projector, photons=0, seed=0)
    other = Projector(ParallelBeam(MATRIX, 2.0, views=64, bins=64, bin_mm=2.8))
    with pytest.raises(ValueError, match=r"pixels of 2 mm, a scan has 2.8 x 2.8"):
        SimulatedProjections(rows, "full", other, photons=1e4, seed=0)
