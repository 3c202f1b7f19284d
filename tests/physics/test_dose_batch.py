"""The batched simulation against the one for a single volume, and item by item against itself."""

import numpy as np
import pytest
import torch

from diffusers_ct.physics import (
    DoseSettings,
    FanBeam,
    ReconstructionKernel,
    simulate_low_dose,
    simulate_low_dose_batch,
)

SIZE, PIXEL_MM = 128, 3.2
SPACING = (2.0, PIXEL_MM, PIXEL_MM)
AXIS = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
X, Y = np.meshgrid(AXIS, AXIS)
BODY = np.where((X / 160.0) ** 2 + (Y / 110.0) ** 2 < 1, 0.0, -1000.0).astype(np.float32)
CENTRE = np.hypot(X, Y) < 60.0
KWARGS = {"spacing_mm": SPACING, "source_noise": "noise_free"}


def batch(items: int, depth: int = 2) -> torch.Tensor:
    return torch.from_numpy(BODY).expand(items, 1, depth, SIZE, SIZE).contiguous()


def spectrum(field: np.ndarray) -> np.ndarray:
    roi = field[:, 32:96, 32:96].astype(np.float64)
    power = (np.abs(np.fft.fft2(roi - roi.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    ring = np.digitize(frequency.ravel(), np.linspace(0, 0.5, 21)) - 1
    return (np.bincount(ring, power.ravel(), 21) / np.bincount(ring, minlength=21))[1:20]


@pytest.mark.parametrize("engine", ["torch", "finufft"])
@pytest.mark.parametrize("source_noise", ["noise_free", "normal_dose"])
def test_has_the_noise_of_the_single_simulation(engine, source_noise):
    settings = DoseSettings(modulation_alpha=0.5, bowtie_half_width_rad=0.19, electronic_variance=30.0, i0=2e5)
    kwargs = {"spacing_mm": SPACING, "source_noise": source_noise, "settings": settings}
    volume = batch(1, 48)
    ours = simulate_low_dose_batch(volume, dose_fraction=[0.1], seeds=[1], engine=engine, **kwargs) - volume
    other = simulate_low_dose(volume[0, 0].numpy(), dose_fraction=0.1, seed=2, **kwargs) - volume[0, 0].numpy()
    found = ours[0, 0].numpy()
    assert found[:, CENTRE].std() == pytest.approx(other[:, CENTRE].std(), rel=0.03)
    expected = spectrum(other)
    np.testing.assert_allclose(spectrum(found), expected, atol=0.1 * expected.max())
    assert np.corrcoef(spectrum(found), expected)[0, 1] > 0.995


def test_an_item_does_not_depend_on_the_others():
    settings = [
        DoseSettings(kernel="smooth"),
        DoseSettings(i0=2e5, bowtie_half_width_rad=0.14, electronic_variance=0.0),
        DoseSettings(kernel=ReconstructionKernel(0.7, boost=2.0), modulation_alpha=0.5),
    ]
    spacings = [SPACING, (1.0, 3.0, 3.0), SPACING]
    doses, seeds = torch.tensor([0.5, 0.1, 0.03]), [7, 8, 7]
    together = simulate_low_dose_batch(
        batch(3), spacing_mm=spacings, dose_fraction=doses, seeds=seeds, settings=settings, source_noise="noise_free",
        slice_thickness_mm=[2.0, 2.0, 5.0], engine="torch",
    )  # fmt: skip
    for k, thickness in enumerate((2.0, 2.0, 5.0)):
        alone = simulate_low_dose_batch(
            batch(1), spacing_mm=spacings[k], dose_fraction=doses[k : k + 1], seeds=[seeds[k]], settings=settings[k],
            source_noise="noise_free", slice_thickness_mm=thickness, engine="torch",
        )  # fmt: skip
        assert (alone[0] - batch(1)[0]).std() > 3.0
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=0.05)  # HU: rounding of the transforms


def test_each_item_has_its_own_dose_seed_and_kernel():
    low = simulate_low_dose_batch(
        batch(4, 8), dose_fraction=[0.4, 0.1, 0.1, 0.1], seeds=[1, 2, 3, 3], engine="torch",
        settings=[DoseSettings(), DoseSettings(), DoseSettings(), DoseSettings(kernel="smooth")], **KWARGS,
    )  # fmt: skip
    field = (low - batch(4, 8))[:, 0].numpy()
    sd = field[:, :, CENTRE].std(axis=(1, 2))
    assert sd[1] / sd[0] == pytest.approx(2.0, rel=0.05)
    assert np.abs(np.corrcoef(field[1].ravel(), field[2].ravel())[0, 1]) < 0.05
    assert np.corrcoef(field[2].ravel(), field[3].ravel())[0, 1] > 0.6  # one draw, two kernels
    assert sd[3] < 0.9 * sd[2]


def test_on_the_cpu_an_item_alone_has_the_same_bits():
    kwargs = {"dose_fraction": [0.1, 0.2, 0.3], **KWARGS}
    together = simulate_low_dose_batch(batch(3, 5), seeds=[1, 2, 3], **kwargs)
    alone = simulate_low_dose_batch(batch(1, 5), seeds=[2], **{**kwargs, "dose_fraction": [0.2]})
    assert torch.equal(alone[0], together[1])


def test_full_dose_of_normal_dose_volumes_is_returned_unchanged():
    low = simulate_low_dose_batch(
        batch(2), spacing_mm=SPACING, dose_fraction=[1.0, 0.5], seeds=[0, 0], source_noise="normal_dose", engine="torch"
    )
    assert torch.equal(low[0], batch(1)[0])
    assert (low[1] - batch(1)[0]).std() > 1.0


def test_overlapping_slices_share_noise():
    volume = batch(1, 24)
    low = simulate_low_dose_batch(volume, dose_fraction=[0.2], seeds=[0], slice_thickness_mm=4.0, **KWARGS)
    field = (low - volume)[0, 0].numpy()[:, CENTRE]
    assert np.corrcoef(field[:-1].ravel(), field[1:].ravel())[0, 1] == pytest.approx(0.5, abs=0.05)


def test_fan_beam_rays_can_be_given():
    rays = FanBeam((SIZE, SIZE), PIXEL_MM, "flat", views=200, bins=200, pitch_mm=4.8)
    volume = batch(2, 16)
    kwargs = {"geometry": rays, **KWARGS}
    field = simulate_low_dose_batch(volume, dose_fraction=[0.1, 0.1], seeds=[0, 1], engine="torch", **kwargs) - volume
    other = simulate_low_dose(volume[0, 0].numpy(), dose_fraction=0.1, seed=2, **kwargs) - volume[0, 0].numpy()
    assert field[:, 0].numpy()[:, :, CENTRE].std() == pytest.approx(other[:, CENTRE].std(), rel=0.04)


def test_refuses_what_does_not_fit():
    good = {"dose_fraction": [0.5, 0.5], "seeds": [0, 1], **KWARGS}
    with pytest.raises(ValueError, match="batch, 1, depth"):
        simulate_low_dose_batch(batch(2)[:, 0], **good)
    with pytest.raises(ValueError, match=r"`seeds` must have an entry for each of the 2 items, got 1"):
        simulate_low_dose_batch(batch(2), **{**good, "seeds": [0]})
    with pytest.raises(ValueError, match="`settings` must have an entry"):
        simulate_low_dose_batch(batch(2), settings=[DoseSettings()], **good)
    with pytest.raises(ValueError, match="`dose_fraction` must be in"):
        simulate_low_dose_batch(batch(2), **{**good, "dose_fraction": [0.5, 1.5]})
    with pytest.raises(ValueError, match="square pixels"):
        simulate_low_dose_batch(batch(2), **{**good, "spacing_mm": [SPACING, (1.0, 2.0, 3.0)]})


@pytest.mark.gpu
def test_the_gpu_makes_the_same_noise_power():
    volume = batch(2, 24)
    kwargs = {"dose_fraction": [0.1, 0.05], "seeds": [0, 1], "settings": DoseSettings(modulation_alpha=0.5), **KWARGS}
    found = simulate_low_dose_batch(volume.cuda(), **kwargs)
    assert found.device.type == "cuda"
    field, other = (found.cpu() - volume).numpy(), (simulate_low_dose_batch(volume, **kwargs) - volume).numpy()
    for k in range(2):
        assert field[k, 0][:, CENTRE].std() == pytest.approx(other[k, 0][:, CENTRE].std(), rel=0.03)
        assert np.corrcoef(spectrum(field[k, 0]), spectrum(other[k, 0]))[0, 1] > 0.99
