"""Low doses made while training: the dose that was drawn, the noise level that `prepare` would find, the same in every order."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data.full_dose_slabs import FullDoseSlabs
from diffusers_ct.data.manifest import features, make_row
from diffusers_ct.data.online_simulation import OnlineSimulation
from diffusers_ct.physics import DoseSettings, simulate_low_dose
from diffusers_ct.residual import estimate_noise_hu, noise_level_hu
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import PreparedObjective, ResidualDiffusionObjective

PIXEL_MM, SIZE = 3.2, 96


def water(height_mm: float = 100.0) -> np.ndarray:
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis, axis)
    return np.where((x / 120.0) ** 2 + (y / height_mm) ** 2 < 1, 40.0, -1000.0).astype(np.float32)


def rows(count: int = 2, doses=(0.25, 0.1), target: str = "noise_free", pixel_mm=(PIXEL_MM, PIXEL_MM)) -> Dataset:
    made = []
    for scan in range(count):
        full = np.stack([water(90.0 + 10.0 * scan)] * 5)
        full[:, 48, 48] += np.arange(5)  # tells the slices apart
        for dose in doses:
            made.append(
                make_row(
                    full + 1.0, full, scan_key=f"{scan}-{dose}", patient_key=f"p{scan}", split="train", dose_fraction=dose,
                    spacing_mm=(2.0, *pixel_mm), affine_lps=np.eye(4), target=target, conditions=ScanConditions(),
                    provenance={"source": "phantom", "seed": int(1000 * dose)},
                )
            )  # fmt: skip
    columns = {name: [row[name] for row in made] for name in made[0]}
    return Dataset.from_dict(columns, features=features((SIZE, SIZE)))


def batch_of(slabs: FullDoseSlabs, numbers) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([slabs[i] for i in numbers])


def fixed(dose: float, **settings):
    return lambda rng: (dose, DoseSettings(**settings))


def test_torch_finds_the_noise_level_that_numpy_finds():
    rng = np.random.default_rng(0)
    volume = np.stack([water(), water(30.0), np.full((SIZE, SIZE), -1000.0, np.float32), water()])
    volume += rng.normal(0.0, 25.0, volume.shape).astype(np.float32)
    found = noise_level_hu(torch.from_numpy(volume))
    assert found.tolist() == pytest.approx(estimate_noise_hu(volume).tolist(), rel=1e-4)
    assert noise_level_hu(torch.from_numpy(volume[:1])).tolist() == pytest.approx(
        estimate_noise_hu(volume[:1]).tolist(), rel=1e-4
    )


def test_each_scan_counts_once_however_many_doses_it_has():
    slabs = FullDoseSlabs(rows(), 3, 200, seed=0)
    assert len(slabs._rows) == 2
    tallest = [bool((slabs[i]["full_hu"][0, 0, :, 48] > 0).sum() > 60) for i in range(200)]
    assert 0.4 < np.mean(tallest) < 0.6
    item = slabs[3]
    assert item["full_hu"].shape == (1, 3, SIZE, SIZE) and item["noise_free"]
    assert (item["full_hu"][0, :, 48, 48].diff() == 1).all()  # slices that follow each other
    slabs.set_epoch(1)
    assert any(
        not torch.equal(slabs[i]["full_hu"], FullDoseSlabs(rows(), 3, 200, seed=0)[i]["full_hu"]) for i in range(9)
    )


@pytest.mark.parametrize(("target", "source"), [("noise_free", "noise_free"), ("normal_dose", "normal_dose")])
def test_noise_is_that_of_the_drawn_dose(target, source):
    """SD in uniform tissue against the NumPy simulation of the same dose and scanner."""
    slabs = FullDoseSlabs(rows(target=target), 5, 64, seed=0)
    simulation = OnlineSimulation((5, 32, 32), draw=fixed(0.1, i0=2e5, kernel="sharp"))
    batch = batch_of(slabs, range(12))
    low, doses = simulation.simulate(batch, torch.arange(12))
    assert doses.tolist() == pytest.approx([0.1] * 12)
    tissue = (slice(None), slice(None), slice(38, 58), slice(38, 58))
    found = (low - batch["full_hu"])[:, 0][tissue].std().item()
    volume = batch["full_hu"][:, 0].float().numpy().reshape(-1, SIZE, SIZE)
    kwargs = {"spacing_mm": (2.0, PIXEL_MM, PIXEL_MM), "dose_fraction": 0.1, "source_noise": source}
    other = simulate_low_dose(volume, seed=5, settings=DoseSettings(i0=2e5, kernel="sharp"), **kwargs) - volume
    assert found == pytest.approx(other[:, 38:58, 38:58].std(), rel=0.03)


def test_patches_lie_where_they_came_from_and_depend_on_their_own_seed():
    slabs = FullDoseSlabs(rows(), 3, 64, seed=0)
    simulation = OnlineSimulation((3, 32, 24), draw=fixed(0.25), patches_per_slab=4)
    seeds = torch.tensor([11, 12, 13])
    made, patch_seeds = simulation(batch_of(slabs, (0, 1, 2)), seeds)
    assert made["low_hu"].shape == made["full_hu"].shape == (12, 1, 3, 32, 24)
    assert made["noise_hu"].shape == (12, 3) and made["spacing_mm"].shape == (12, 3)
    assert len(set(patch_seeds.tolist())) == 12
    # the low dose is the full dose of the same place and some noise: a shift would show the body's edge
    assert (made["low_hu"] - made["full_hu"]).abs().amax() < 12 * made["noise_hu"].max()
    assert ((made["full_hu"] > -900).float().mean(dim=(1, 2, 3, 4)) > 0.2).all()  # few are all air
    alone, alone_seeds = simulation(batch_of(slabs, (1,)), seeds[1:2])
    assert torch.equal(alone["full_hu"], made["full_hu"][4:8]) and torch.equal(alone_seeds, patch_seeds[4:8])
    torch.testing.assert_close(alone["low_hu"], made["low_hu"][4:8], atol=0.05, rtol=0)
    other, _ = simulation(batch_of(slabs, (1,)), torch.tensor([99]))
    assert not torch.equal(other["low_hu"], alone["low_hu"])


def test_turned_patches_keep_their_slices_and_spacing():
    slabs = FullDoseSlabs(rows(pixel_mm=(PIXEL_MM, PIXEL_MM)), 3, 64, seed=0)
    draws = OnlineSimulation((3, 96, 96), draw=fixed(0.25), patches_per_slab=16)
    made, _ = draws(batch_of(slabs, (0,)), torch.tensor([4]))
    steps = made["full_hu"][:, 0, :, 47:49, 47:49].amax(dim=(2, 3)).diff(dim=1)
    assert set(steps.flatten().tolist()) == {1.0, -1.0}  # slices in order, or all of a patch reversed
    assert ((steps == steps[:, :1]).all(dim=1)).all()
    reversed_ = steps[:, 0] < 0
    levels = made["noise_hu"]
    assert torch.equal(levels[reversed_][0], levels[~reversed_][0].flip(0))


def test_a_training_step_on_simulated_pairs_has_the_loss_of_those_pairs():
    class Zero(torch.nn.Module):
        def forward(self, sample, timestep, **kwargs):
            return type("Output", (), {"sample": torch.zeros_like(sample[:, :1])})()

    slabs = FullDoseSlabs(rows(), 3, 64, seed=0)
    simulation = OnlineSimulation((3, 32, 32), draw=fixed(0.25), patches_per_slab=4)
    objective = ResidualDiffusionObjective(Zero(), make_noise_scheduler("cosine"), terminal_fraction=1.0)
    batch, seeds = batch_of(slabs, (0, 1)), torch.tensor([5, 6])
    found = PreparedObjective(simulation, objective)(batch, seeds)["loss"].item()
    pairs, _ = simulation(batch, seeds)
    residual = (pairs["full_hu"] - pairs["low_hu"]) / pairs["noise_hu"][:, None, :, None, None]
    assert found == pytest.approx(residual.square().mean().item(), rel=1e-4)  # at the last step v = -r


def test_refuses_what_cannot_be_simulated():
    with pytest.raises(ValueError, match="square pixels"):
        FullDoseSlabs(rows(pixel_mm=(1.0, 2.0)), 3, 8, seed=0)
    with pytest.raises(ValueError, match="thinnest scan has 5"):
        FullDoseSlabs(rows(), 6, 8, seed=0)
    unpaired = Dataset.from_dict({"dose": ["normal", "low"]})
    with pytest.raises(ValueError, match="1 of 2 scans are of low dose"):
        FullDoseSlabs(unpaired, 3, 8, seed=0)
    slabs = FullDoseSlabs(rows(), 3, 8, seed=0)
    with pytest.raises(ValueError, match="no patches of"):
        OnlineSimulation((2, 32, 32), draw=fixed(0.25))(batch_of(slabs, (0,)), torch.tensor([1]))
    with pytest.raises(ValueError, match="positive"):
        OnlineSimulation((2, 32, 32), draw=fixed(0.25), patches_per_slab=0)
