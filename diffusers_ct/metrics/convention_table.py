"""One pair of images under every published convention, to show how far its numbers lie apart."""

from dataclasses import dataclass

import numpy as np

from .image import CONVENTIONS, Convention, bias, mae, psnr_pooled, psnr_slice_mean, rmse, ssim


@dataclass(frozen=True)
class ConventionRow:
    """What one convention says of a pair of images.

    Attributes:
        name: key of `metrics.CONVENTIONS`.
        convention: its clip, data range and SSIM window.
        psnr_pooled_db: None where the data range changes from slice to slice.
        psnr_slice_mean_db: mean over slices.
        ssim: mean over slices, in [-1, 1].
        rmse_hu: after the convention's clip, as all errors here.
        mae_hu: mean absolute error.
        bias_hu: predicted minus reference.
    """

    name: str
    convention: Convention
    psnr_pooled_db: float | None
    psnr_slice_mean_db: float
    ssim: float
    rmse_hu: float
    mae_hu: float
    bias_hu: float


def convention_rows(predicted_hu: np.ndarray, reference_hu: np.ndarray) -> list[ConventionRow]:
    """A row for each convention, in the order of `CONVENTIONS`.

    Args:
        predicted_hu: (height, width) or (depth, height, width) in HU.
        reference_hu: of the same shape.

    Raises:
        ValueError: for other shapes, values that are not finite, or images below 11 x 11 pixels.
    """
    rows = []
    for name, rule in CONVENTIONS.items():
        pooled = None
        if rule.data_range_hu != "reference":
            pooled = psnr_pooled(predicted_hu, reference_hu, convention=name)
        rows.append(
            ConventionRow(
                name,
                rule,
                pooled,
                psnr_slice_mean(predicted_hu, reference_hu, convention=name),
                ssim(predicted_hu, reference_hu, convention=name),
                rmse(predicted_hu, reference_hu, convention=name),
                mae(predicted_hu, reference_hu, convention=name),
                bias(predicted_hu, reference_hu, convention=name),
            )
        )
    return rows


def format_convention_table(rows: list[ConventionRow]) -> str:
    """The rows as a Markdown table, and a line that says how far the same pair's scores lie apart."""
    lines = [
        "| convention | clip HU | data range HU | SSIM window, border | PSNR pooled dB | PSNR slice mean dB | SSIM | RMSE HU "
        "| MAE HU | bias HU | used by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rule = row.convention
        low, high = rule.clip_hu
        peak = "max - min of slice" if rule.data_range_hu == "reference" else f"{rule.data_range_hu:g}"
        pooled = "-" if row.psnr_pooled_db is None else f"{row.psnr_pooled_db:.2f}"
        lines.append(
            f"| {row.name} | {low:g} to {high:g} | {peak} | {rule.ssim_window}, {rule.ssim_border} | {pooled} "
            f"| {row.psnr_slice_mean_db:.2f} | {row.ssim:.4f} | {row.rmse_hu:.2f} | {row.mae_hu:.2f} | {row.bias_hu:+.2f} "
            f"| {rule.source} |"
        )
    decibels = [v for row in rows for v in (row.psnr_pooled_db, row.psnr_slice_mean_db) if v is not None]
    structural = [row.ssim for row in rows]
    lines += [
        "",
        f"The same pair scores {min(decibels):.2f} to {max(decibels):.2f} dB and SSIM {min(structural):.4f} to "
        f"{max(structural):.4f}: a number without its convention says nothing.",
    ]
    return "\n".join(lines)
