"""How a simulated or restored scan was made, as its file says it, and what the source's header no longer says of it."""

import json
from dataclasses import replace
from typing import Any

import pydicom

from . import __version__
from .io import Derivation, DicomSource
from .io.dicom_conditions import positive_number
from .physics import SIMULATOR_VERSION
from .physics.scan_simulation import ScanSimulation
from .physics.truncation import body_beyond_field_mm, borders_in_body
from .volume import CTVolume

# Of the acquisition's dose: true of the source, not of an image with the noise of another dose (PS3.3 C.8.2.1, C.8.15.3.8).
DOSE_ATTRIBUTES = (
    "Exposure", "ExposureInuAs", "ExposureInmAs", "XRayTubeCurrent", "XRayTubeCurrentInuA", "XRayTubeCurrentInmA",
    "CTDIvol", "GeneratorPower", "EstimatedDoseSaving",
)  # fmt: skip


def restoration_derivation(
    *, model_id: str, model_revision: str | None, num_inference_steps: int, num_samples: int, seed: int
) -> Derivation:
    """Of a restored scan; arguments as the fields of `Derivation`."""
    return Derivation(
        method="low-dose restoration by residual diffusion",
        package_version=__version__,
        model_id=model_id,
        model_revision=model_revision,
        num_inference_steps=num_inference_steps,
        num_samples=num_samples,
        seed=seed,
    )


def simulation_derivation(volume: CTVolume, settings: dict[str, Any]) -> Derivation:
    """Of a simulated low dose.

    Args:
        volume: the scan at its own dose.
        settings: of `simulation_settings`.
    """
    known = dict(settings)
    return Derivation(
        method="low-dose simulation: photon and electronic noise added through projections",
        package_version=__version__,
        seed=known.pop("seed"),
        synthetic=volume.synthetic,
        conditions=json.dumps(known),
    )


def simulation_settings(
    volume: CTVolume,
    made: ScanSimulation,
    *,
    dose_fraction: float,
    seed: int,
    source_noise: str = "normal_dose",
    preset: str | None = None,
) -> dict[str, Any]:
    """How a low dose was simulated, as far as it is known, in plain JSON values.

    Args:
        volume: the scan at its own dose.
        made: of `simulate_scan`, and so are the others.
        dose_fraction: of the scan's own dose.
        seed: of the noise.
        source_noise: of the scan.
        preset: if one was named.
    """
    settings = {
        "seed": seed,
        "dose_fraction": dose_fraction,
        "source_noise": source_noise,
        "i0": float(f"{made.settings.i0:.6g}"),
        "i0_from": made.i0_from,
        "kernel": made.kernel_name,
        "window": _window(made),
        "electronic_variance": made.settings.electronic_variance,
        "count_floor": made.settings.count_floor,
        "modulation_alpha": made.settings.modulation_alpha,
        "bowtie_half_width_rad": made.settings.bowtie_half_width_rad,
        "geometry": type(made.geometry).__name__,
        "preset": preset,
        "simulator": SIMULATOR_VERSION,
        "source_exposure_mas": volume.conditions.tube_current_mas,
        "source_ctdivol_mgy": header_number(volume, "CTDIvol"),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _window(made: ScanSimulation) -> dict[str, float] | None:
    """Numbers of a window that was matched; a named one needs none."""
    if made.kernel_name != "matched":
        return None
    return {name: round(float(value), 4) for name, value in vars(made.settings.window).items()}


def source_without_dose(volume: CTVolume) -> DicomSource | None:
    """The scan's source without what its header says of the dose."""
    if volume.source is None:
        return None
    headers = []
    for header in volume.source.headers:
        kept = pydicom.Dataset()
        kept.update(header)
        for name in DOSE_ATTRIBUTES:
            if name in kept:
                del kept[name]
        headers.append(kept)
    return replace(volume.source, headers=tuple(headers))


def header_number(volume: CTVolume, name: str) -> float | None:
    """A positive number of the first slice's header."""
    return None if volume.source is None else positive_number(volume.source.headers[0], name)


def notes_of_reading(volume: CTVolume) -> list[str]:
    """What reading left out or found odd; NIfTI and MetaImage say nothing that could be."""
    if volume.source is None:
        return []
    notes = [f"{note[0].upper()}{note[1:]}." for note in volume.source.notes]
    if volume.source.resampled:
        notes.append("Resampled: the scan's noise is smoother than it was, and so I0 and kernel are off.")
    return notes


def notes_of_truncation(volume: CTVolume, made: ScanSimulation) -> list[str]:
    """Where a simulated low dose is off because the image cuts the body off."""
    notes, pixel_mm = [], volume.spacing_mm[2]
    borders = borders_in_body(volume.hu, pixel_mm=pixel_mm)
    continued = made.geometry.image_shape[1] > volume.shape[2]
    if missed := [name for name in borders if not continued or name in ("upper", "lower")]:
        notes.append(
            f"The image cuts the body off at its {' and '.join(missed)} border, and the body was not continued there: the "
            "noise behind it is too low."
        )
    beyond_mm = body_beyond_field_mm(volume.hu, pixel_mm=pixel_mm, field_mm=made.geometry.field_mm)
    if beyond_mm > pixel_mm:
        notes.append(
            f"The body reaches {beyond_mm:.0f} mm out of the measured field, which is {made.geometry.field_mm:.0f} mm wide: "
            "rays that pass it outside are left out, and the noise near the rim is wrong. Without a `preset`, parallel rays "
            "(`geometry`) measure the whole image."
        )
    return notes
