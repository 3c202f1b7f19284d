"""Low doses made while a model trains: every step sees another dose, noise and kernel, on the training device."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..physics import DoseSettings, simulate_low_dose_batch
from ..residual import noise_level_hu
from . import transforms
from .patch_drawing import BODY_FRACTION, BODY_HU, BODY_STRIDE, TRIES

DrawDose = Callable[[np.random.Generator], tuple[float, DoseSettings]]


class OnlineSimulation:
    """Makes a batch of training pairs from a batch of `FullDoseSlabs`.

    `simulation(batch, seeds)` projects the whole slices, adds the noise of a drawn dose and scanner, reconstructs it,
    measures the noise level as `prepare` does, and cuts patches: `patches_per_slab` from each slab, as the simulation costs
    far more than a patch. All of it happens on the device of the batch. The draws of a slab depend on its seed alone.

    The result is what `PatchDataset` gives, in float32: "low_hu", "full_hu" (batch x patches, 1, D, H, W) in HU,
    "noise_hu" (batch x patches, D), "spacing_mm" (.., 3), "dose_fraction" (..,), and a seed for each patch.
    For training use it as `training.PreparedObjective(simulation, objective)`.

    The scanner is what `draw` gives, whatever the scan's own noise: I0 and kernel are not measured in the scan, as
    `prepare_paired_ct` and `simulate_scan` do. A scan far noisier than the drawn scanner gets less noise than its own lower
    dose would have: set the ranges of the draw to the I0 that `diffusers-ct simulate` finds in such scans.

    Args:
        patch_size: (depth, height, width); the depth is that of the slabs.
        draw: gives the dose fraction, in (0, 1), and the scanner of a slab, such as `diffusers_ct.physics.DoseDraws`.
        patches_per_slab: patches cut from each simulated slab.
        augment: whether to flip and turn.

    Raises:
        ValueError: for a size that means nothing.
    """

    def __init__(
        self, patch_size: tuple[int, int, int], *, draw: DrawDose, patches_per_slab: int = 8, augment: bool = True
    ) -> None:
        if min(*patch_size, patches_per_slab) < 1:
            raise ValueError(
                f"`patch_size` and `patches_per_slab` must be positive, got {tuple(patch_size)} and {patches_per_slab}."
            )
        self.patch_size = tuple(patch_size)
        self.draw = draw
        self.patches_per_slab = patches_per_slab
        self.augment = augment

    @torch.no_grad()
    def __call__(
        self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Pairs and their seeds.

        Raises:
            ValueError: if slabs are smaller than a patch, or deeper.
        """
        full_hu = batch["full_hu"].float()
        depth, height, width = self.patch_size
        if full_hu.shape[2] != depth or full_hu.shape[3] < height or full_hu.shape[4] < width:
            raise ValueError(
                f"Slabs of {tuple(full_hu.shape[2:])} voxels give no patches of {self.patch_size}: the depth must be the "
                "same, and the slices no smaller."
            )
        low_hu, doses = self.simulate(batch, seeds)
        noise_hu = torch.stack([noise_level_hu(low) for low in low_hu[:, 0]])
        patches: list[dict[str, torch.Tensor]] = []
        patch_seeds: list[int] = []
        for item, seed in enumerate(seeds.tolist()):
            rng = np.random.default_rng([seed, 2])
            for k in range(self.patches_per_slab):
                patches.append(self._patch(rng, full_hu[item], low_hu[item], noise_hu[item], batch["spacing_mm"][item]))
                patches[-1]["dose_fraction"] = doses[item]
                patch_seeds.append(int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0] >> 1))
        stacked = {name: torch.stack([patch[name] for patch in patches]) for name in patches[0]}
        return stacked, torch.tensor(patch_seeds, dtype=torch.int64)

    def simulate(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Low dose of whole slabs, (batch, 1, D, H, W) float32 in HU, and their dose fractions (batch,)."""
        full_hu = batch["full_hu"].float()
        drawn = [self.draw(np.random.default_rng([seed, 1])) for seed in seeds.tolist()]
        low_hu = torch.empty_like(full_hu)
        noise_free = batch["noise_free"].bool().cpu()
        for source in ("noise_free", "normal_dose"):
            items = torch.nonzero(noise_free if source == "noise_free" else ~noise_free).flatten().tolist()
            if items:
                low_hu[items] = simulate_low_dose_batch(
                    full_hu[items],
                    spacing_mm=[tuple(row) for row in batch["spacing_mm"][items].tolist()],
                    dose_fraction=[drawn[i][0] for i in items],
                    seeds=[int(seeds[i]) for i in items],
                    source_noise=source,
                    settings=[drawn[i][1] for i in items],
                    slice_thickness_mm=batch["slice_thickness_mm"][items].tolist(),
                )
        return low_hu, torch.tensor([dose for dose, _ in drawn], dtype=torch.float32, device=full_hu.device)

    def _patch(
        self,
        rng: np.random.Generator,
        full_hu: torch.Tensor,
        low_hu: torch.Tensor,
        noise_hu: torch.Tensor,
        spacing_mm: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        _, height, width = self.patch_size
        y, x = self._place(rng, full_hu[0])
        turn = transforms.Orientation()
        if self.augment:
            turn = transforms.draw(rng, square=height == width)
        flips = [axis for axis, flip in ((-3, turn.flip_z), (-1, turn.flip_x)) if flip]
        low, full = (
            torch.rot90(torch.flip(image[..., y : y + height, x : x + width], flips), turn.quarter_turns, (-2, -1))
            for image in (low_hu, full_hu)
        )
        return {
            "low_hu": low,
            "full_hu": full,
            "noise_hu": noise_hu.flip(0) if turn.flip_z else noise_hu,
            "spacing_mm": spacing_mm[[0, 2, 1]] if turn.quarter_turns % 2 else spacing_mm,
        }

    def _place(self, rng: np.random.Generator, full_hu: torch.Tensor) -> tuple[int, int]:
        """The first place of a few with enough of the patient in it, else the best of them."""
        _, height, width = self.patch_size
        limits = (full_hu.shape[1] - height + 1, full_hu.shape[2] - width + 1)
        places = [(int(rng.integers(limits[0])), int(rng.integers(limits[1]))) for _ in range(TRIES)]
        shares = torch.stack(
            [
                (full_hu[::2, y : y + height : BODY_STRIDE, x : x + width : BODY_STRIDE] > BODY_HU).float().mean()
                for y, x in places
            ]
        ).tolist()  # one wait for the device, not one a place
        enough = [k for k, share in enumerate(shares) if share >= BODY_FRACTION]
        return places[enough[0] if enough else int(np.argmax(shares))]
