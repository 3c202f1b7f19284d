"""Does the dose simulation predict the noise of a real scanner? Calibrated on some slices, judged on others.

The truth is the difference of the low-dose and the full-dose image of one acquisition: all anatomy cancels, and what is
left is the noise that the lower dose adds. Of a slice that is predicted nothing is used but its full-dose image, its
header's exposure and the measured field.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from ..metrics.noise_power import Corner, NoisePower, noise_power_spectrum, region_variances, roi_corners
from ..physics import (
    DoseSettings,
    ParallelBeam,
    TabulatedKernel,
    calibrate_i0_from_scan,
    match_kernel,
    simulate_low_dose,
)
from ..physics.truncation import complete_body

ROI_PIXELS, ROI_STEP, RADIAL_BINS = 64, 32, 24
I0_START = 2e6  # of the first trial; what is found does not depend on it where quantum noise prevails


@dataclass(frozen=True, eq=False)
class ScannerPair:
    """One slice at full and at low dose, of one acquisition.

    Attributes:
        name: of the slice, for tables.
        series: slices of one series share patient, kernel and thickness, so that I0 per mAs is one number.
        full_hu, low_hu: (height, width) in HU.
        pixel_mm: side of the pixels.
        exposure_mas: of the full dose, from the header; None if unknown.
        kernel: name in the header.
        dose_fraction: of the low dose.
        field_mm: diameter of the measured field.
    """

    name: str
    series: str
    full_hu: np.ndarray
    low_hu: np.ndarray
    pixel_mm: float
    exposure_mas: float | None
    kernel: str
    dose_fraction: float
    field_mm: float = 500.0

    @property
    def added_hu(self) -> np.ndarray:
        """What the lower dose added."""
        return self.low_hu - self.full_hu

    def tissue(self) -> np.ndarray:
        """Soft tissue away from edges, where standard deviations are compared."""
        smooth = ndimage.gaussian_filter(self.full_hu, 2.0)
        return ndimage.binary_erosion((smooth > -20) & (smooth < 150), iterations=4)

    def corners(self) -> list[Corner]:
        """Regions of the noise power spectra: all that lie in the body. Air is left out: it is clipped at -1024 HU.

        Raises:
            ValueError: if there is none.
        """
        body = ndimage.binary_fill_holes(ndimage.gaussian_filter(self.full_hu, 2.0) > -500)
        body = ndimage.binary_erosion(ndimage.binary_opening(body, iterations=5), iterations=8)
        corners = roi_corners(body[None], roi_pixels=ROI_PIXELS, step_pixels=ROI_STEP, fraction=0.95)
        if not corners:
            raise ValueError(
                f"{self.name} shows no region of {ROI_PIXELS} x {ROI_PIXELS} pixels within the body: leave it out."
            )
        return corners


@dataclass(frozen=True)
class Physics:
    """What is chosen of the scanner, on calibration slices alone.

    The defaults, from which the choice starts, were set with all slices of the Mayo pairs in view.

    Attributes:
        body_reach: how far a body that the image cuts off goes on, as a fraction of the way to the measured field's edge.
        modulation_alpha, bowtie_half_width_rad, electronic_variance: as in `DoseSettings`.
    """

    body_reach: float = 0.4
    modulation_alpha: float = 0.5
    bowtie_half_width_rad: float | None = 0.14
    electronic_variance: float = 10.0

    def settings(self, kernel: TabulatedKernel, i0: float) -> DoseSettings:
        return DoseSettings(
            i0=i0,
            electronic_variance=self.electronic_variance,
            modulation_alpha=self.modulation_alpha,
            bowtie_half_width_rad=self.bowtie_half_width_rad,
            kernel=kernel,
        )


# Tried one after the other, twice around.
CHOICES: dict[str, tuple[Any, ...]] = {
    "body_reach": (0.0, 0.4, 0.7, 1.0),
    "modulation_alpha": (0.0, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    "bowtie_half_width_rad": (None, 0.12, 0.14, 0.16, 0.19),
    "electronic_variance": (0.0, 10.0, 30.0, 60.0),
}
_WORTH_MOVING = 0.98  # a choice that lowers the loss by less is a matter of chance: the default stays


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of one slice, from the others.

    Attributes:
        pair: the slice.
        settings: with which it was simulated.
        sd_measured_hu, sd_predicted_hu: of the added noise in soft tissue; predicted: mean of the draws; None if I0
            cannot be predicted, as no other slice or no exposure is known.
        sd_alone_hu: the same, with I0 from the noise of the slice's own full-dose image instead (kernel and physics still
            from the others); None where it shows too little uniform tissue.
        measured, predicted: noise power in the body; of the prediction the mean of the draws.
        correlation: of the two radial spectra.
        ceiling: the same for one draw against the mean of the other draws, mean and smallest: what a perfect
            prediction would reach on one noisy measurement.
        drawn_hu: one simulated noise image.
        body_reach: as in `Physics`.
        note: how I0 was had, if not from other slices of the series.
    """

    pair: ScannerPair
    settings: DoseSettings
    sd_measured_hu: float
    sd_predicted_hu: float | None
    sd_alone_hu: float | None
    measured: NoisePower
    predicted: NoisePower
    correlation: float
    ceiling: tuple[float, float]
    drawn_hu: np.ndarray
    body_reach: float
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.sd_predicted_hu is None else self.sd_predicted_hu / self.sd_measured_hu

    @property
    def ratio_of_both(self) -> float | None:
        """Predicted over measured SD with the mean (geometric) of the two predictions, which share no measurement."""
        if self.sd_predicted_hu is None or self.sd_alone_hu is None:
            return None
        return float(np.sqrt(self.sd_predicted_hu * self.sd_alone_hu)) / self.sd_measured_hu

    def row(self) -> dict[str, Any]:
        """As plain values, for JSON and tables."""
        return {
            "slice": self.pair.name,
            "kernel": self.pair.kernel,
            "exposure_mas": self.pair.exposure_mas,
            "sd_measured_hu": self.sd_measured_hu,
            "sd_predicted_hu": self.sd_predicted_hu,
            "sd_ratio": self.ratio,
            "sd_ratio_own_noise": None if self.sd_alone_hu is None else self.sd_alone_hu / self.sd_measured_hu,
            "sd_ratio_of_both": self.ratio_of_both,
            "nps_correlation": self.correlation,
            "nps_ceiling_mean": self.ceiling[0],
            "nps_ceiling_min": self.ceiling[1],
            "peak_measured_per_mm": self.measured.peak_frequency_per_mm,
            "peak_predicted_per_mm": self.predicted.peak_frequency_per_mm,
            "mean_frequency_measured_per_mm": self.measured.mean_frequency_per_mm,
            "mean_frequency_predicted_per_mm": self.predicted.mean_frequency_per_mm,
            "regions": self.measured.rois,
            "i0": self.settings.i0,
            "modulation_alpha": self.settings.modulation_alpha,
            "bowtie_half_width_rad": self.settings.bowtie_half_width_rad,
            "electronic_variance": self.settings.electronic_variance,
            "body_reach": self.body_reach,
            "note": self.note,
        }


def added_noise_hu(pair: ScannerPair, settings: DoseSettings, body_reach: float, *, seeds: Sequence[int]) -> np.ndarray:
    """(draws, height, width) of noise that the simulation adds to the full-dose image; the body is completed first."""
    reach_mm = body_reach * (pair.field_mm - pair.full_hu.shape[1] * pair.pixel_mm) / 2
    wide, margin = complete_body(pair.full_hu[None], pixel_mm=pair.pixel_mm, reach_mm=reach_mm)
    geometry = ParallelBeam((wide.shape[1], wide.shape[2]), pair.pixel_mm)
    low = [
        simulate_low_dose(
            wide,
            spacing_mm=(1.0, pair.pixel_mm, pair.pixel_mm),
            dose_fraction=pair.dose_fraction,
            seed=seed,
            source_noise="normal_dose",
            settings=settings,
            geometry=geometry,
        )[0]
        for seed in seeds
    ]
    noise = np.stack(low) - wide
    return noise[:, :, margin : wide.shape[2] - margin]


def nps(pair: ScannerPair, noise_hu: np.ndarray) -> NoisePower:
    """Noise power in the slice's body, mean over (draws, height, width)."""
    corners = [(k, row, column) for _, row, column in pair.corners() for k in range(len(noise_hu))]
    return noise_power_spectrum(
        noise_hu, pixel_mm=pair.pixel_mm, corners=corners, roi_pixels=ROI_PIXELS, detrend="quadratic"
    )


def spectral_correlation(a: NoisePower, b: NoisePower) -> float:
    """Pearson correlation of two radial spectra up to the Nyquist frequency."""
    return float(np.corrcoef(a.radial(RADIAL_BINS)[1], b.radial(RADIAL_BINS)[1])[0, 1])


def matched_kernels(pairs: Sequence[ScannerPair]) -> dict[str, TabulatedKernel]:
    """One window for each kernel's name, from the added noise of its largest group of equal pixels."""
    kernels = {}
    for name in sorted({pair.kernel for pair in pairs}):
        sizes = [pair.pixel_mm for pair in pairs if pair.kernel == name]
        pixel_mm = max(set(sizes), key=sizes.count)
        noise = [p.added_hu for p in pairs if p.kernel == name and p.pixel_mm == pixel_mm]
        kernels[name] = match_kernel(np.stack(noise), pixel_mm)
    return kernels


def choose_physics(
    pairs: Sequence[ScannerPair], choices: Mapping[str, Sequence[Any]] = CHOICES
) -> tuple[Physics, dict[Physics, float]]:
    """The physics whose noise is distributed over places and slices most like the scanner's, one parameter at a time.

    Returns:
        It, and the loss of all that were tried: root mean square of ln(SD simulated / SD measured) over regions, each
        series having its own I0 per mAs. What lowers the loss by less than 2 % is not taken.
    """
    kernels = matched_kernels(pairs)
    known = [pair for pair in pairs if pair.exposure_mas]
    per_mas = _i0_of_series(known, Physics(), kernels)
    best = Physics()
    losses = {best: _sd_loss(best, known, kernels, per_mas)}
    for _ in range(2):
        before = best
        for name, values in choices.items():
            tried = [replace(best, **{name: value}) for value in values]
            for physics in tried:
                if physics not in losses:
                    losses[physics] = _sd_loss(physics, known, kernels, per_mas)
            least = min(tried, key=losses.__getitem__)
            if best not in tried or losses[least] < _WORTH_MOVING * losses[best]:
                best = least
        if best == before:
            break
    return best, losses


def _sd_loss(
    physics: Physics,
    pairs: Sequence[ScannerPair],
    kernels: Mapping[str, TabulatedKernel],
    per_mas: Mapping[str, float],
) -> float:
    ratios: dict[str, list[np.ndarray]] = {}
    for pair in pairs:
        settings = physics.settings(kernels[pair.kernel], per_mas[pair.series] * float(pair.exposure_mas or 0.0))
        simulated = added_noise_hu(pair, settings, physics.body_reach, seeds=(7,))[0]
        ratios.setdefault(pair.series, []).append(_log_sd_ratios(pair, simulated))
    residuals = []
    for slices in ratios.values():
        centre = np.mean([r.mean() for r in slices])
        residuals += [np.mean((r - centre) ** 2) for r in slices]  # slices count alike, however many regions they have
    return float(np.sqrt(np.mean(residuals)))


def _i0_of_series(
    pairs: Sequence[ScannerPair], physics: Physics, kernels: Mapping[str, TabulatedKernel]
) -> dict[str, float]:
    groups: dict[str, list[ScannerPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.series, []).append(pair)
    return {name: i0_per_mas(group, physics, kernels[group[0].kernel]) for name, group in groups.items()}


def i0_per_mas(pairs: Sequence[ScannerPair], physics: Physics, kernel: TabulatedKernel) -> float:
    """I0 per mAs at which the simulated noise has the measured SD in soft tissue: geometric mean over the slices."""
    found = []
    for pair in pairs:
        assert pair.exposure_mas is not None
        i0 = I0_START
        for _ in range(2):  # the second round takes up electronic noise
            simulated = added_noise_hu(pair, physics.settings(kernel, i0), physics.body_reach, seeds=(7,))[0]
            tissue = pair.tissue()
            i0 *= float((simulated[tissue].std() / pair.added_hu[tissue].std()) ** 2)
        found.append(i0 / pair.exposure_mas)
    return float(np.exp(np.mean(np.log(found))))


def predict(
    held_out: ScannerPair, others: Sequence[ScannerPair], physics: Physics, *, draws: int = 6
) -> Prediction | None:
    """Predicts one slice from others; None if none of them has its kernel."""
    same_kernel = [pair for pair in others if pair.kernel == held_out.kernel and pair.exposure_mas]
    if not same_kernel:
        return None
    kernel = matched_kernels(same_kernel)[held_out.kernel]
    siblings = [pair for pair in same_kernel if pair.series == held_out.series]
    note = "" if siblings else "I0 not predicted: no other slice of this series; shape only"
    known = bool(siblings) and held_out.exposure_mas is not None
    if known:
        i0 = i0_per_mas(siblings, physics, kernel) * float(held_out.exposure_mas or 0.0)
    else:  # the shape of the spectrum hardly depends on it: from the slice itself
        i0 = i0_per_mas([replace(held_out, exposure_mas=1.0)], physics, kernel)
    settings = physics.settings(kernel, i0)
    drawn = added_noise_hu(held_out, settings, physics.body_reach, seeds=range(100, 100 + draws))
    tissue, added = held_out.tissue(), held_out.added_hu
    measured, predicted = nps(held_out, added[None]), nps(held_out, drawn)
    single = [nps(held_out, drawn[k : k + 1]) for k in range(draws)]
    ceiling = [
        spectral_correlation(one, replace(predicted, power_hu2mm2=_mean_without(single, k)))
        for k, one in enumerate(single)
    ]
    return Prediction(
        pair=held_out,
        settings=settings,
        sd_measured_hu=float(added[tissue].std()),
        sd_predicted_hu=float(np.mean([noise[tissue].std() for noise in drawn])) if known else None,
        sd_alone_hu=_sd_from_own_noise(held_out, settings, physics),
        measured=measured,
        predicted=predicted,
        correlation=spectral_correlation(measured, predicted),
        ceiling=(float(np.mean(ceiling)), float(np.min(ceiling))),
        drawn_hu=drawn[0],
        body_reach=physics.body_reach,
        note=note,
    )


def _sd_from_own_noise(pair: ScannerPair, settings: DoseSettings, physics: Physics) -> float | None:
    try:
        i0 = calibrate_i0_from_scan(
            pair.full_hu[None],
            spacing_mm=(1.0, pair.pixel_mm, pair.pixel_mm),
            settings=settings,
            geometry=ParallelBeam((pair.full_hu.shape[0], pair.full_hu.shape[1]), pair.pixel_mm),
        )
    except ValueError:  # too little uniform tissue
        return None
    noise = added_noise_hu(pair, replace(settings, i0=i0), physics.body_reach, seeds=(200, 201))
    return float(np.mean([drawn[pair.tissue()].std() for drawn in noise]))


def validate(
    pairs: Sequence[ScannerPair],
    *,
    folds: int = 3,
    choices: Mapping[str, Sequence[Any]] = CHOICES,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[list[Prediction], list[Mapping[str, Any]]]:
    """Predicts every slice from others.

    The scanner's physics is chosen on the slices outside the held-out slice's fold, kernel and I0 on all other slices.

    Returns:
        A prediction for each slice that can be predicted, and of each fold what was chosen with the losses.
    """
    pairs = sorted(pairs, key=lambda pair: (pair.series, pair.name))
    fold_of = {id(pair): k % folds for k, pair in enumerate(pairs)}
    predictions: dict[int, Prediction] = {}
    chosen: list[Mapping[str, Any]] = []
    for fold in progress(range(folds)):
        outside = [pair for pair in pairs if fold_of[id(pair)] != fold and pair.exposure_mas]
        physics, losses = choose_physics(outside, choices)
        chosen.append({"fold": fold, "chosen": physics, "losses": losses, "calibrated_on": [p.name for p in outside]})
        for k, pair in enumerate(pairs):
            if fold_of[id(pair)] == fold:
                prediction = predict(pair, [p for p in pairs if p is not pair], physics)
                if prediction is not None:
                    predictions[k] = prediction
    return [predictions[k] for k in sorted(predictions)], chosen


def _log_sd_ratios(pair: ScannerPair, simulated_hu: np.ndarray) -> np.ndarray:
    """ln(SD simulated / SD measured) of each region of the body."""
    simulated, measured = (
        region_variances(noise[None], pair.corners(), roi_pixels=ROI_PIXELS, detrend="quadratic")
        for noise in (simulated_hu, pair.added_hu)
    )
    return 0.5 * np.log(simulated / measured)


def _mean_without(spectra: Sequence[NoisePower], k: int) -> np.ndarray:
    return np.mean([s.power_hu2mm2 for j, s in enumerate(spectra) if j != k], axis=0)
