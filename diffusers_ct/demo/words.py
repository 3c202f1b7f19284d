"""What the page says: facts of a scan and mistakes in sentences, in the names of its own controls, of no patient."""

import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..io import SeriesSummary
from ..io.identity import without_identity
from ..mistakes import is_users_mistake, message_of, with_flags
from ..pipelines import ContractError
from ..volume import CTVolume

STRAIGHTEN = "Straighten a tilted or unevenly spaced series"
ASSUME_HU = "Take the values as HU though no air is among them"
KERNEL = "Kernel of the simulation"
I0 = "Photons per ray"
STEPS, SAMPLES = "Steps", "Samples"
_CONTROLS = {
    "resample": f"“{STRAIGHTEN}”",
    "assume_hu": f"“{ASSUME_HU}”",
    "kernel": f"“{KERNEL}”",
    "i0": f"“{I0}”",
    "steps": f"“{STEPS}”",
    "samples": f"“{SAMPLES}”",
    "tile_size": "tile (`diffusers-ct restore --tile-size`)",
    "preset": "preset (`diffusers-ct simulate --preset`)",
    "geometry": "`diffusers-ct simulate --geometry`",
}
PROMISES = {
    "slice_spacing_mm": "slice spacing [mm]",
    "pixel_spacing_mm": "pixel spacing [mm]",
    "slice_thickness_mm": "slice thickness [mm]",
    "noise_level_hu": "noise level [HU]",
    "dose_fraction": "dose, as a fraction",
    "kernels": "kernel",
    "body_parts": "body part",
}
# What the demo cannot do and the command line can.
_ELSEWHERE = {
    'Pass deidentify="keep_patient" and keep it with the patient.': "`diffusers-ct restore --deidentify keep_patient` "
    "writes one that keeps the patient."
}


class StoppedError(ValueError):
    """The visitor stopped the work."""


def sentence_of(error: BaseException, path: Path, scan: CTVolume | None) -> str:
    """What an error tells the visitor, without paths of this machine, names of files, or names of the scan's patient.

    Args:
        error: whatever was raised.
        path: of the dropped scan, under the name that the demo gave it.
        scan: what was read from it.
    """
    if isinstance(error, ContractError) and error.outside:
        broken = "; ".join(f"{PROMISES.get(name, name)} {text}" for name, text in error.outside.items())
        text = (
            f"This scan lies outside what the checkpoint was trained on: {broken}. Nothing was restored. Use a checkpoint "
            "made for such scans, or tick below what is not to be checked: the result is then not validated."
        )
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch, on a GPU
        text = f"The memory is full. Take fewer “{SAMPLES}” or “{STEPS}”, or a scan of fewer slices."
    elif is_users_mistake(error) or isinstance(error, StoppedError):
        text = with_flags(message_of(error), _CONTROLS)
    else:
        return (
            f"The program failed ({type(error).__name__}): this is its fault, not yours. Where it failed stands in the "
            "terminal that it was started from."
        )
    for said, instead in _ELSEWHERE.items():
        text = text.replace(said, instead)
    return shown(without_paths(text, path), scan)


def shown(text: str, scan: CTVolume | None) -> str:
    """A text without words that name the patient of the scan."""
    return text if scan is None or scan.source is None else without_identity(text, scan.source.headers[0])


def without_paths(text: str, path: Path) -> str:
    """A message without the names of files: those of an archive's entries may be a patient's."""
    for name in _entry_names(path):
        for said in (f"{path}!{name}", repr(name)):
            text = text.replace(said, "a file in it")
    text = re.sub(rf"{re.escape(str(path))}!\S*", "a file in it", text)
    text = re.sub(r" \([^()]* \.\.\.\)", "", text)  # the first of the files that a DICOMDIR misses
    text = re.sub(rf"{re.escape(str(path))}/\S*?(?=:|\s|$)", "one of the files", text)
    text = text.replace(f"{path}: ", "").replace(str(path), "the scan")
    return text[:1].upper() + text[1:]


def _entry_names(path: Path) -> list[str]:
    """Names of an archive's files and folders, longest first; none where there is no archive that can be listed."""
    names: set[str] = set()
    try:
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names.update(archive.namelist())
        elif path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                names.update(archive.getnames())
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError):
        return []
    names.update(str(parent) for name in tuple(names) for parent in PurePosixPath(name).parents)
    return sorted((name.rstrip("/") for name in names if len(name) > 1), key=len, reverse=True)


def name_of(stack: SeriesSummary, number: int) -> str:
    """A stack of slices as it is offered: by number, as a UID would identify it."""
    rows, columns = stack.matrix
    parts = [f"{number}. {stack.slices} slices of {rows} x {columns}", stack.kind, stack.description, stack.difference]
    return ", ".join(part for part in parts if part)


def facts_of(scan: CTVolume, notes: Sequence[str]) -> list[str]:
    """What was read, in sentences."""
    depth, rows, columns = scan.shape
    z, y, x = scan.spacing_mm
    pixels = f"{x:.3g}" if abs(x - y) < 1e-3 * x else f"{y:.3g} x {x:.3g}"
    known = scan.conditions
    parts = [
        f"{depth} slice{'s' if depth > 1 else ''} of {rows} x {columns}",
        f"every {z:.3g} mm",
        f"pixels of {pixels} mm",
    ]
    if known.slice_thickness_mm is not None:
        parts.append(f"{known.slice_thickness_mm:g} mm thick")
    if known.kernel is not None:
        parts.append(f"kernel {known.kernel}")
    if known.kvp is not None:
        parts.append(f"{known.kvp:g} kV")
    if known.body_part is not None:
        parts.append(known.body_part.lower())
    return [shown(text, scan) for text in (f"{', '.join(parts)}.", *notes)]
