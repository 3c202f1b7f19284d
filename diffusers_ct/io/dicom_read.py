"""Reading a series of classic DICOM CT images as one volume in HU."""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from ..conditions import ScanConditions
from ..volume import CTVolume
from .dicom_geometry import SliceGeometry, find_irregularity, regular_affine, resample_regular
from .dicom_pixels import check_declared_size, stored_values, to_hu, transfer_syntax
from .errors import CTReadError, DamagedFileError, GeometryError, NotCTError, SeveralSeriesError

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_REFORMAT_WORDS = ("REFORMATTED", "MPR", "MIP", "MINIP", "AVERAGE", "CSA", "CSAMIP", "VRT")
# Defined terms of RescaleType (PS3.3 C.11.1.1.2) that are not HU.
_NOT_HU = ("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "CC_M", "MV", "VMR")
_LARGEST_VOLUME_BYTES = 64 * 2**30


@dataclass(frozen=True)
class DicomSource:
    """Where a volume came from: headers without pixels, in the order of its slices. It holds the patient's identity.

    Attributes:
        headers: one dataset a slice.
        resampled: whether the voxels are no longer those of the slices.
    """

    headers: tuple[pydicom.Dataset, ...]
    resampled: bool = False

    def __repr__(self) -> str:
        return f"DicomSource({len(self.headers)} slices)"

    def __reduce__(self) -> Any:
        raise TypeError(
            "A DicomSource holds the patient's identity and is not pickled: drop it, `replace(v, source=None)`."
        )


@dataclass(frozen=True)
class SeriesSummary:
    """One stack of slices in a folder.

    Attributes:
        series_uid: SeriesInstanceUID.
        description: SeriesDescription, empty where there is none.
        kind: "original", "reformat" or "localizer".
        slices: number of images.
        matrix: (rows, columns).
    """

    series_uid: str
    description: str
    kind: str
    slices: int
    matrix: tuple[int, int]

    def __str__(self) -> str:
        rows, columns = self.matrix
        name = self.description or "no description"
        return f"{self.slices} slices of {rows} x {columns}, {self.kind}, {name!r}, series_uid={self.series_uid}"


Entry = tuple[Path, pydicom.Dataset]


def read_dicom(
    path: Path, *, series_uid: str | None = None, resample: bool = False, slice_spacing_mm: float | None = None
) -> CTVolume:
    """Reads a folder or a file; see `read_volume`."""
    try:
        return _read(path, series_uid, resample, slice_spacing_mm)
    except CTReadError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        # An element of the wrong kind (text for a number, two values for one) somewhere in the header.
        raise DamagedFileError(f"{path}: an element of the header has an impossible value ({error}).") from error


def _read(path: Path, series_uid: str | None, resample: bool, slice_spacing_mm: float | None) -> CTVolume:
    entries = _chosen(path, _read_headers(path), series_uid)
    for file, header in entries:
        check_is_ct(header, file)
        check_declared_size(header, file)
    geometry, entries = _sorted_geometry(entries)
    where = path if len(entries) > 1 else entries[0][0]
    irregularity = find_irregularity(geometry)
    if irregularity is not None:
        text, mendable = irregularity
        if not mendable:
            raise GeometryError(f"{where}: {text}.")
        if not resample:
            raise GeometryError(
                f"{where}: {text}. Pass resample=True (--resample) to interpolate it onto a regular grid."
            )
    if len(entries) == 1:
        slice_spacing_mm = slice_spacing_mm or _lone_spacing(entries[0][1])
        if slice_spacing_mm is None:
            raise GeometryError(
                f"{where}: a single slice without SliceThickness: give its thickness as slice_spacing_mm."
            )
    headers = [header for _, header in entries]
    size = (len(entries), int(headers[0].Rows), int(headers[0].Columns))
    if 4 * int(np.prod(size)) > _LARGEST_VOLUME_BYTES:
        raise GeometryError(f"{where}: a volume of {size} voxels would take {4 * int(np.prod(size)) / 2**30:.0f} GiB.")
    hu = np.empty(size, dtype=np.float32)

    def fill(k: int) -> None:
        file, header = entries[k]
        hu[k] = to_hu(stored_values(_read_whole(file), file), header, file)

    if transfer_syntax(headers[0]).is_encapsulated and len(entries) > 1:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoders release the interpreter
            list(pool.map(fill, range(len(entries))))
    else:
        for k in range(len(entries)):
            fill(k)
    if irregularity is not None:
        hu, affine, spacing = resample_regular(hu, geometry)
    else:
        affine, spacing = regular_affine(geometry, slice_spacing_mm)
    source = DicomSource(tuple(headers), resampled=irregularity is not None)
    return CTVolume(hu, (spacing, *geometry.pixel_mm), affine, conditions_of(headers[0]), source)


def list_series(path: str | Path) -> list[SeriesSummary]:
    """What a DICOM folder holds, largest stack first."""
    groups = _groups(_read_headers(Path(path)))
    return sorted((_summary(key, entries) for key, entries in groups.items()), key=lambda s: -s.slices)


def _read_headers(path: Path) -> list[Entry]:
    if path.is_file():
        return [(path, _read_header(path))]
    entries, refused = [], []
    files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith(".") and f.name != "DICOMDIR")
    for file in files:
        try:
            header = _read_header(file)
            if header.get("Rows"):
                entries.append((file, header))
            elif _is_ct_by_meta(header):  # other objects without pixels (reports, plans) may lie beside
                raise DamagedFileError(f"{file}: the header of a CT image is cut off: it has no Rows.")
        except CTReadError as error:
            refused.append((file, error))
    # Text and the like may lie beside the images; a damaged image among sound ones must not go unnoticed.
    damaged = [error for file, error in refused if _looks_like_dicom(file)]
    if damaged:
        raise damaged[0]
    if not entries:
        raise CTReadError(f"{path}: no DICOM image among {len(files)} files.")
    return entries


def _is_ct_by_meta(header: pydicom.Dataset) -> bool:
    return getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID") == _CT_IMAGE_STORAGE


def _looks_like_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".ima")


def _read_header(file: Path) -> pydicom.Dataset:
    try:
        header: pydicom.Dataset = pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        header = _read_headless(file)
    except Exception as error:
        raise DamagedFileError(f"{file}: the DICOM header is damaged ({type(error).__name__}).") from error
    try:
        header.decode()
    except Exception as error:
        raise DamagedFileError(f"{file}: the DICOM header is damaged ({type(error).__name__}).") from error
    return header


def _read_headless(file: Path) -> pydicom.Dataset:
    """A file without preamble and meta group, as old systems wrote (PS3.10 allows none of that)."""
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        if not header.get("Rows") or not (header.get("SOPClassUID") or header.get("Modality")):
            raise CTReadError(f"{file}: not a DICOM image.")
    except CTReadError:
        raise
    except Exception as error:
        raise CTReadError(f"{file}: not a DICOM image.") from error
    return header


def _read_whole(file: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(file, force=True)
    except Exception as error:
        raise DamagedFileError(f"{file}: the file is damaged or cut off ({type(error).__name__}: {error}).") from error


def _kind(header: pydicom.Dataset) -> str:
    words = [str(word).upper() for word in _values(header.get("ImageType"))]
    if "LOCALIZER" in words:
        return "localizer"
    return "reformat" if any(word in _REFORMAT_WORDS for word in words) else "original"


def _values(value: Any) -> list:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def _groups(entries: Iterable[Entry]) -> dict[tuple, list[Entry]]:
    """Stacks: one series, one kind, one orientation, one matrix."""
    groups: dict[tuple, list[Entry]] = defaultdict(list)
    for file, header in entries:
        try:
            orientation = tuple(round(float(v), 2) + 0.0 for v in _values(header.get("ImageOrientationPatient")))
        except ValueError:
            orientation = ()
        matrix = (int(header.get("Rows") or 0), int(header.get("Columns") or 0))
        groups[(str(header.get("SeriesInstanceUID", "")), _kind(header), orientation, matrix)].append((file, header))
    return groups


def _summary(key: tuple, entries: list[Entry]) -> SeriesSummary:
    uid, kind, _, matrix = key
    return SeriesSummary(uid, str(entries[0][1].get("SeriesDescription", "")), kind, len(entries), matrix)


def _chosen(path: Path, entries: list[Entry], series_uid: str | None) -> list[Entry]:
    """The one stack that is meant: localizers are never a volume, and one of several must be named."""
    groups = _groups(entries)
    listed = "\n".join(f"  {_summary(key, group)}" for key, group in groups.items())
    if series_uid is not None:
        groups = {key: group for key, group in groups.items() if key[0] == series_uid}
        if not groups:
            raise SeveralSeriesError(f"{path}: there is no series {series_uid}. It holds:\n{listed}")
    volumes = {key: group for key, group in groups.items() if key[1] != "localizer"}
    if not volumes:
        raise NotCTError(f"{path}: only a localizer (scout) image is here, which is not a CT slice.")
    if len(volumes) == 1:
        return next(iter(volumes.values()))
    originals = [group for key, group in volumes.items() if key[1] == "original"]
    if series_uid is not None and len(originals) == 1:
        return originals[0]
    if series_uid is not None:
        raise GeometryError(f"{path}: the series mixes orientations or matrix sizes:\n{listed}")
    raise SeveralSeriesError(f"{path}: several series are here; choose one with series_uid (--series-uid):\n{listed}")


def check_is_ct(header: pydicom.Dataset, file: Path) -> None:
    """Refuses what is not a classic CT image in HU.

    Raises:
        CTReadError: NotCTError for another kind of object, DamagedFileError for one that lacks what it needs.
    """
    if str(header.get("SOPClassUID", "")) in _ENHANCED_CT or int(header.get("NumberOfFrames") or 1) > 1:
        raise NotCTError(
            f"{file}: a multi-frame object of {header.get('NumberOfFrames')} frames; only classic CT images, one slice a "
            "file, are read. Convert it to single frames first."
        )
    modality = header.get("Modality")
    if modality not in ("CT", None, "") or (
        not modality and header.get("SOPClassUID") not in (_CT_IMAGE_STORAGE, None)
    ):
        raise NotCTError(f"{file}: the modality is {modality!r}, not CT.")
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        raise NotCTError(f"{file}: MONOCHROME1 (inverted) is not allowed for CT: the values' meaning is not certain.")
    if header.get("RescaleType") in _NOT_HU:
        raise NotCTError(f"{file}: the values are of RescaleType {header.RescaleType}, not HU.")
    try:
        slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    except (AttributeError, TypeError, ValueError):
        raise DamagedFileError(
            f"{file}: RescaleSlope and RescaleIntercept are missing, so the values cannot be turned into HU."
        ) from None
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope > 0):
        raise DamagedFileError(f"{file}: RescaleSlope {slope} and RescaleIntercept {intercept} give no HU.")


def _sorted_geometry(entries: list[Entry]) -> tuple[SliceGeometry, list[Entry]]:
    rows, positions, pixels = [], [], []
    for file, header in entries:
        orientation = _numbers(header, "ImageOrientationPatient", 6, file)
        row, column = orientation[:3], orientation[3:]
        if abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2 or abs(row @ column) > 1e-2:
            raise DamagedFileError(f"{file}: ImageOrientationPatient {orientation.tolist()} are not two unit vectors.")
        spacing = _numbers(header, "PixelSpacing", 2, file)
        if not (spacing > 0).all():
            raise DamagedFileError(f"{file}: PixelSpacing {spacing.tolist()} is not positive.")
        rows.append(orientation)
        positions.append(_numbers(header, "ImagePositionPatient", 3, file))
        pixels.append(spacing)
    if np.ptp(np.array(pixels), axis=0).max() > 1e-3:
        raise GeometryError(f"{entries[0][0].parent}: PixelSpacing changes within the series.")
    mean = np.mean(rows, axis=0)
    row, column = mean[:3] / np.linalg.norm(mean[:3]), mean[3:]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    order = np.argsort(np.array(positions) @ np.cross(row, column), kind="stable")
    y, x = pixels[0]
    geometry = SliceGeometry(np.array(positions)[order], row, column, (float(y), float(x)))
    return geometry, [entries[i] for i in order]


def _numbers(header: pydicom.Dataset, name: str, count: int, file: Path) -> np.ndarray:
    try:
        values = np.array([float(v) for v in _values(header.get(name))])
    except (TypeError, ValueError):
        raise DamagedFileError(f"{file}: {name} holds no numbers.") from None
    if len(values) != count or not np.isfinite(values).all():
        raise DamagedFileError(f"{file}: {name} is missing or has {len(values)} of {count} values.")
    return values


def _lone_spacing(header: pydicom.Dataset) -> float | None:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = _optional(header, name)
        if value is not None and value > 0:
            return value
    return None


def _optional(header: pydicom.Dataset, name: str) -> float | None:
    try:
        value = header.get(name)
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


def conditions_of(header: pydicom.Dataset) -> ScanConditions:
    """What the header says of how the scan was made; what it leaves out or garbles is unknown.

    Headers state no contrast phase, finding or dose fraction. An empty ContrastBolusAgent is unknown (its module is
    there only if an agent was given, PS3.3 A.3.3, yet scanners write it empty for scans without one); so is a quantity
    of 0.
    """
    sex = str(header.get("PatientSex", "") or "").strip().upper()
    kernel = "\\".join(str(v) for v in _values(header.get("ConvolutionKernel")))
    agent = str(header.get("ContrastBolusAgent", "") or "").strip().upper()
    return ScanConditions(
        body_part=str(header.get("BodyPartExamined", "") or "").strip().upper() or None,
        age_years=_age_years(str(header.get("PatientAge", "") or "").strip().upper()),
        sex=sex if sex in ("M", "F", "O") else None,
        kvp=_positive(header, "KVP"),
        tube_current_mas=_exposure_mas(header),
        kernel=kernel or None,
        manufacturer=str(header.get("Manufacturer", "") or "").strip() or None,
        slice_thickness_mm=_positive(header, "SliceThickness"),
        contrast_agent=None if not agent else agent not in ("NONE", "NO"),
    )


def _positive(header: pydicom.Dataset, name: str) -> float | None:
    value = _optional(header, name)
    return value if value is not None and 0 < value < np.inf else None


def _age_years(age: str) -> float | None:
    """Completed years of an Age String: three digits and D, W, M or Y (PS3.5 section 6.2); at most 90.

    A child below 1 has an age in months or less: "000Y" is what phantoms and de-identified scans carry, and unknown.
    """
    per_year = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
    if not (age[:-1].isdecimal() and age[-1] in per_year) or (int(age[:-1]) == 0 and age[-1] == "Y"):
        return None
    return min(int(age[:-1]) // per_year[age[-1]], 90.0)


def _exposure_mas(header: pydicom.Dataset) -> float | None:
    """Exposure in mAs, else the same in uAs, else exposure time (ms) times tube current (mA); PS3.3 C.8.2.1."""
    exposure = _positive(header, "Exposure")
    if exposure is not None:
        return exposure
    exposure_uas = _positive(header, "ExposureInuAs")
    if exposure_uas is not None:
        return exposure_uas / 1000.0
    time_ms, current_ma = _positive(header, "ExposureTime"), _positive(header, "XRayTubeCurrent")
    return None if time_ms is None or current_ma is None else time_ms * current_ma / 1000.0
