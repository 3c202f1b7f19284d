"""Validation during training: restores held-out scans in one step and says how far they are from the truth."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from diffusers import DDIMScheduler
from torch import nn

from ..conditions import ScanConditions
from ..hounsfield import WINDOWS_HU
from ..metrics import body_mask
from ..models import ConditionalDenoiser
from ..pipelines import CTDiffusionPipeline
from ..training import Validation
from ..volume import CTVolume


class RestorationValidator:
    """`validate` of the training loop.

    Args:
        dataset: held-out rows of `load_paired_ct`, of patients that are not trained on.
        scheduler_config: of the noise scheduler.
        max_scans: rows restored each time, the first ones.
        max_slices: middle slices of each.
    """

    def __init__(
        self, dataset: Dataset, scheduler_config: Mapping[str, Any], *, max_scans: int = 4, max_slices: int = 8
    ) -> None:
        if not len(dataset):
            raise ValueError("There is no scan to validate on: the split is empty.")
        self.scheduler = DDIMScheduler.from_config(scheduler_config)
        self.scans = []
        rows = dataset.select(range(min(max_scans, len(dataset)))).with_format("numpy", dtype=np.float32)
        for row in rows:
            start = max(0, (len(row["low"]) - max_slices) // 2)
            part = slice(start, start + max_slices)
            z, y, x = (float(v) for v in row["spacing_mm"])
            conditions = ScanConditions(**json.loads(str(row["conditions"])))
            self.scans.append((CTVolume.from_array(row["low"][part], (z, y, x), conditions), row["full"][part]))

    def __call__(self, model: nn.Module, step: int) -> Validation:
        """Body RMSE and bias in HU, and the gain over the low dose in dB; a picture of the first scan."""
        if isinstance(model, ConditionalDenoiser):
            pipe = CTDiffusionPipeline(model.unet, self.scheduler, condition_encoder=model.condition_encoder)
        else:
            pipe = CTDiffusionPipeline(model, self.scheduler)  # type: ignore[arg-type]
        pipe.set_progress_bar_config(disable=True)
        squared: dict[str, list[float]] = {"low": [], "restored": []}
        biases, images = [], {}
        for number, (scan, full) in enumerate(self.scans):
            low = scan.hu
            restored = pipe(scan, output_type="np").volumes
            mask = body_mask(full)
            for name, hu in (("low", low), ("restored", restored)):
                squared[name].append(float(np.square(hu - full, dtype=np.float64)[mask].mean()))
            biases.append(float((restored - full)[mask].mean(dtype=np.float64)))
            if number == 0:
                middle = len(low) // 2
                images["low_restored_full"] = _panel(low[middle], restored[middle], full[middle])
        low_mse, mse = (float(np.mean(squared[name])) for name in ("low", "restored"))
        metrics = {
            "rmse_body_hu": float(np.sqrt(mse)),
            "gain_db": 10.0 * float(np.log10(low_mse / mse)),
            "bias_body_hu": float(np.mean(biases)),
        }
        return Validation(metrics, images)


def _panel(*images_hu: np.ndarray) -> np.ndarray:
    """Images side by side in the soft-tissue window, uint8."""
    lower, upper = WINDOWS_HU["soft_tissue"]
    row = np.concatenate(images_hu, axis=1)
    return np.rint(np.clip((row - lower) / (upper - lower), 0.0, 1.0) * 255.0).astype(np.uint8)
