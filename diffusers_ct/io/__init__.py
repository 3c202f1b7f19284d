"""Reading scans as HU volumes and writing results as new objects."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

from ..volume import CTVolume, ScanSlices
from .deidentify import DEIDENTIFY_CHOICES, Deidentify
from .deidentify_key import DeidentificationKey
from .deidentify_profile import DeidentificationOptions
from .deidentify_series import DeidentifyReport, deidentify_series
from .dicom_groups import SeriesSummary
from .dicom_read import DicomSource, list_series, read_dicom
from .dicom_write import Derivation
from .errors import (
    CTReadError,
    DamagedFileError,
    GeometryError,
    NotCTError,
    SeveralSeriesError,
    UnsafeArchiveError,
)
from .metaimage import read_metaimage
from .nifti import read_nifti
from .scan_reader import open_dicom
from .volume_writer import VolumeWriter, open_volume_writer

__all__ = [
    "DEIDENTIFY_CHOICES",
    "CTReadError",
    "DamagedFileError",
    "DeidentificationKey",
    "DeidentificationOptions",
    "DeidentifyReport",
    "Derivation",
    "DicomSource",
    "GeometryError",
    "NotCTError",
    "SeriesSummary",
    "SeveralSeriesError",
    "UnsafeArchiveError",
    "VolumeWriter",
    "check_output_path",
    "deidentify_series",
    "list_series",
    "open_scan",
    "open_volume_writer",
    "read_volume",
    "write_volume",
]

_NIFTI = (".nii", ".nii.gz")
# A letter and up to four letters or figures: the suffix of a file. Folders may be called scan_0.1 or study.2024.
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,4}", re.IGNORECASE)


def read_volume(
    path: str | Path,
    *,
    series_uid: str | None = None,
    stack: int | None = None,
    resample: bool = False,
    slice_spacing_mm: float | None = None,
    assume_hu: bool = False,
) -> CTVolume:
    """Reads a CT scan: DICOM (a folder, file, zip or tar archive, or DICOMDIR), NIfTI (.nii, .nii.gz) or MetaImage
    (.mha, .mhd).

    DICOM slices, classic or frames of enhanced multi-frame objects, are sorted along their normal, rescaled one by one,
    padding becomes air. What is not a regular volume of CT in HU is refused with the reason, never read as if it were;
    `source.notes` says what was left out. Archives are read in place, nothing of them is written to disk.

    Args:
        path: folder or file.
        series_uid: which series of a folder that holds several.
        stack: which stack, from 1, of a series that holds several (acquisitions, orientations, kernels, phases);
            `list_series` and `diffusers-ct inspect` number them.
        resample: interpolate a tilted or unevenly spaced series onto a regular grid; smooths the noise.
        slice_spacing_mm: for a single DICOM slice whose header has no thickness.
        assume_hu: take the values of a NIfTI or MetaImage file as HU though no air is among them.

    Raises:
        CTReadError: naming the file and the defect.
        FileNotFoundError: if there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "There is no file or folder at this path", str(path))
    name = path.name.lower()
    if path.is_file() and name.endswith(_NIFTI):
        return read_nifti(path, assume_hu=assume_hu)
    if path.is_file() and name.endswith((".mha", ".mhd")):
        return read_metaimage(path, assume_hu=assume_hu)
    return read_dicom(path, series_uid=series_uid, stack=stack, resample=resample, slice_spacing_mm=slice_spacing_mm)


def open_scan(
    path: str | Path, *, series_uid: str | None = None, stack: int | None = None, resample: bool = False
) -> ScanSlices:
    """Opens a CT scan whose slices are decoded when they are asked for; arguments and errors are those of `read_volume`.

    Lazy is a regular series in a folder, one file a slice. Whatever else `read_volume` reads (archives, multi-frame
    files, a series to be straightened, NIfTI, MetaImage) is read whole, as 4 bytes a voxel.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() and path.name.lower().endswith((*_NIFTI, ".mha", ".mhd"))):
        return open_dicom(path, series_uid=series_uid, stack=stack, resample=resample)
    return ScanSlices.of(read_volume(path))


def check_output_path(path: str | Path) -> Path:
    """Refuses a path that `write_volume` would refuse, so that a long computation is not lost on it.

    Raises:
        FileExistsError: if there is something at `path`.
        NotADirectoryError: if it lies below a file.
        OSError: if nothing can be written in the nearest folder above it that is there.
        ValueError: if its suffix stands for a format that is not written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(path))
    if _SUFFIX.fullmatch(path.suffix) and not path.name.lower().endswith((*_NIFTI, ".mha")):
        raise ValueError(
            f"{path}: a {path.suffix} file is not written: name a folder for DICOM (without such a suffix), or a .nii, .nii.gz "
            "or .mha file."
        )
    above = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise NotADirectoryError(20, "This is a file, so that nothing can be written below it", str(above))
    try:  # its permissions do not tell: root, /proc, a mount that is read-only
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        reason = f"Nothing can be written in this folder ({error.strerror})"
        raise type(error)(error.errno, reason, str(above)) from error
    return path


def write_volume(
    volume: CTVolume,
    path: str | Path,
    *,
    source: DicomSource | CTVolume | None = None,
    derivation: Derivation | None = None,
    deidentify: Deidentify = "basic",
    series_description: str = "diffusers-ct result",
    rescale_slope: float = 1.0,
    key: DeidentificationKey | None = None,
    options: DeidentificationOptions | None = None,
) -> Path:
    """Writes a volume: a new DERIVED DICOM series (a folder), NIfTI (.nii, .nii.gz) or MetaImage (.mha).

    A DICOM series gets new UIDs, references to its source images and signed 16-bit values HU / `rescale_slope`.
    Nothing is overwritten, and a crash leaves nothing half-written.

    Args:
        volume: in HU.
        path: folder of the new series, or file.
        source: scan that the volume was made from; None takes `volume.source`. DICOM only.
        derivation: how it was made, for DerivationDescription; in NIfTI a header extension, in MetaImage header fields.
            One that is `synthetic` marks the file as such.
        deidentify: "basic" leaves out who and where, shifts dates and maps UIDs anew (the safe choice, hence the default);
            "keep_patient" keeps the patient and the study, for the archive that the scan came from. Free text of the source
            is dropped in both, and so are private tags but the few that PS3.15 calls safe in "basic". DICOM only.
        series_description: of the new series.
        rescale_slope: HU per stored unit; below 1 for small values such as uncertainty.
        key: of "basic": results and copies (`deidentify_series`) made with one key stay linked. None draws one.
        options: of "basic".

    Raises:
        FileExistsError: if there is something at `path`.
        ValueError: if the volume cannot be stored, does not fit its source, or has one though it is said to be synthetic.
    """
    path = check_output_path(path)
    if volume.synthetic and not (derivation is not None and derivation.synthetic):
        raise ValueError(
            "This volume is synthetic and must say so in its file: pass `derivation=Derivation.from_provenance(...)` with "
            "what the pipeline returned beside it."
        )
    given = source.source if isinstance(source, CTVolume) else source if source is not None else volume.source
    if derivation is not None and derivation.synthetic and given is not None:
        raise ValueError("A synthetic volume has no source scan: write it without `source`.")
    like = replace(ScanSlices.of(volume), source=given)
    with open_volume_writer(
        path,
        like,
        derivation=derivation,
        deidentify=deidentify,
        series_description=series_description,
        rescale_slope=rescale_slope,
        key=key,
        options=options,
    ) as writer:
        writer.write(volume.hu)
    return path
