"""All studies on phantoms together, in one size."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...physics.low_contrast_phantom import RodPhantom
from .detectability import detectability_study
from .insertion import insertion_study
from .methods import Method
from .noise import noise_study
from .scans import phantom_scans
from .sizes import StudySize
from .transfer import transfer_study

# Phantoms whose numbers no training is likely to have used: `prepare` counts from 0.
_FIRST_PHANTOM = 900_000
_FIELD_MM = 384.0  # holds a thorax
_LARGEST_PIXEL_MM = 2.0  # of which the channels of the smallest rod have something to tell apart


def phantom_studies(
    methods: Mapping[str, Method],
    *,
    samplers: Mapping[str, Method],
    repeatable: Mapping[str, Method],
    size: StudySize,
    pixel_mm: float,
    slice_mm: float,
    seed: int,
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Name -> study, to be run when called.

    Args:
        methods: that are judged in every study.
        samplers: judged in the study of noise as well: one sample of a posterior, whose texture a mean cannot show.
        repeatable: the same methods for the study of lesions, which needs one noise with and without lesion: samplers with
            a fixed seed; deterministic methods as they are.
        size: how much is measured, of `STUDY_SIZES`.
        pixel_mm, slice_mm: of all phantoms: those that the methods are made for.
        seed: of the noise; the phantoms themselves are always the same.

    Raises:
        ValueError: for pixels on which the smallest rod is no longer seen.
    """
    if not 0.0 < pixel_mm <= _LARGEST_PIXEL_MM:
        raise ValueError(
            f"The studies on phantoms need pixels of at most {_LARGEST_PIXEL_MM:g} mm, and these are of {pixel_mm:g} mm: "
            "their smallest rod has 3 mm."
        )
    matrix = min(32 * int(np.ceil(_FIELD_MM / pixel_mm / 32)), 512)
    disc = RodPhantom(pixel_mm=pixel_mm)
    common: dict[str, Any] = {"slab_slices": size.slab_slices, "seed": seed, "slice_mm": slice_mm}

    def insertion() -> list[dict[str, Any]]:
        scans = phantom_scans(
            range(_FIRST_PHANTOM, _FIRST_PHANTOM + size.insertion_scans),
            size.regions,
            shape=(size.insertion_slices, matrix, matrix),
            spacing_mm=(slice_mm, pixel_mm, pixel_mm),
        )
        return insertion_study(
            repeatable,
            scans,
            dose_fractions=size.doses,
            diameters_mm=size.diameters_mm,
            contrasts_hu=size.contrasts_hu,
            places=size.insertion_places,
            seed=seed,
        )

    return {
        "noise": lambda: noise_study(
            {**methods, **samplers}, phantom=disc, dose_fractions=size.doses, slices=size.noise_slices, **common
        ),
        "transfer": lambda: transfer_study(
            methods, pixel_mm=pixel_mm, dose_fractions=size.doses, slices=size.transfer_slices, **common
        ),
        "detectability": lambda: detectability_study(
            methods,
            phantom=disc,
            dose_fractions=size.detectability_doses,
            slices=size.detectability_slices,
            **common,
        ),
        "insertion": insertion,
    }
