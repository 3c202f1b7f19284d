"""Reading one stack of CT images, classic or multi-frame, as a volume in HU."""

import os
import struct
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ..volume import CTVolume
from .archives import StoredFile
from .dicom_checks import check_is_ct, drop_copies
from .dicom_conditions import conditions_of, positive_number
from .dicom_files import Contents, DicomFile, Slice, counted, find_slices
from .dicom_geometry import (
    LEAST_SPACING_MM,
    SliceGeometry,
    find_irregularity,
    regular_affine,
    resample_regular,
    slice_geometry,
)
from .dicom_groups import SeriesSummary, Stack, group
from .dicom_multiframe import frame_count
from .dicom_pixels import check_declared_size, decode_frame, encoded_frames, to_hu
from .errors import CTReadError, DamagedFileError, GeometryError, NotCTError, SeveralSeriesError
from .header_notes import header_notes
from .quiet import quiet_pydicom

_WIDEST_GAP = 3.0  # slice thicknesses over which interpolation would invent anatomy
_LARGEST_VOLUME_BYTES = 64 * 2**30


@dataclass(frozen=True)
class DicomSource:
    """Where a volume came from: headers without pixels, in the order of its slices. It holds the patient's identity.

    Attributes:
        headers: one dataset a slice; of a multi-frame file one a frame, under the names of the classic image.
        resampled: whether the voxels are no longer those of the slices.
        notes: what was left out, and where the header does not fit the scan, in words for the user; no patient.
    """

    headers: tuple[pydicom.Dataset, ...]
    resampled: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"DicomSource({len(self.headers)} slices)"

    def __reduce__(self) -> Any:
        raise TypeError(
            "A DicomSource holds the patient's identity and is not pickled: drop it, `replace(v, source=None)`."
        )


@dataclass
class ReadPlan:
    """A stack that can be read, checked as far as headers go.

    Attributes:
        slices: sorted along the normal.
        geometry: of them.
        mendable: why it has to be resampled; None for a regular stack.
        lone_spacing_mm: thickness of a single slice.
        notes: see `DicomSource`.
    """

    slices: list[Slice]
    geometry: SliceGeometry
    mendable: str | None
    lone_spacing_mm: float | None
    notes: list[str]


def read_dicom(
    path: Path,
    *,
    series_uid: str | None = None,
    stack: int | None = None,
    resample: bool = False,
    slice_spacing_mm: float | None = None,
) -> CTVolume:
    """Reads a folder, file, archive or DICOMDIR; see `read_volume`."""
    with only_read_errors(path):
        contents, plan = plan_scan(
            path, series_uid=series_uid, stack=stack, resample=resample, slice_spacing_mm=slice_spacing_mm
        )
        return assemble(contents, plan)


def plan_scan(
    path: Path, *, series_uid: str | None, stack: int | None, resample: bool, slice_spacing_mm: float | None
) -> tuple[Contents, ReadPlan]:
    """What is read of a path, before any pixel is."""
    contents = find_slices(path)
    chosen = _choose(path, stacks_in(contents), contents, series_uid, stack)
    plan = plan_stack(contents, chosen, resample=resample, slice_spacing_mm=slice_spacing_mm)
    contents.slices = []  # headers of what is not read
    return contents, plan


def list_series(path: str | Path) -> list[SeriesSummary]:
    """What a DICOM folder, archive or DICOMDIR holds, largest stack first.

    Raises:
        CTReadError: if there is no DICOM image, or what is there cannot be told.
    """
    path = Path(path)
    with only_read_errors(path):
        contents = find_slices(path)
        if contents.damaged:
            raise contents.damaged[0][1]
        return sorted((s.summary() for s in stacks_in(contents)), key=lambda s: -s.slices)


class only_read_errors:
    """Turns whatever an impossible header brings about into a `DamagedFileError`; its text may name a patient, so only
    the kind of the error is told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._quiet = quiet_pydicom()

    def __enter__(self) -> None:
        self._quiet.__enter__()  # once around all threads, because the state is the whole process's

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._quiet.__exit__(kind, error, trace)
        expected = (
            ArithmeticError,
            AttributeError,
            EOFError,
            LookupError,
            MemoryError,
            NotImplementedError,
            RecursionError,
            TypeError,
            ValueError,
            struct.error,
            zlib.error,
        )
        if isinstance(error, expected) and not isinstance(error, CTReadError):
            raise DamagedFileError(
                f"{self._path}: an element of a header has an impossible value ({type(error).__name__}); `diffusers-ct "
                "inspect` shows which stack it is in."
            ) from error


def stacks_in(contents: Contents) -> list[Stack]:
    """All stacks, those of a series one after another."""
    return group(contents.slices, lambda slices: drop_copies(contents.storage, slices))


def _choose(path: Path, stacks: list[Stack], contents: Contents, series_uid: str | None, number: int | None) -> Stack:
    """The one stack that is meant: localizers are never a volume, and one of several must be named."""
    listed = "\n".join(f"  {stack.summary()}" for stack in stacks)
    if not stacks and contents.damaged:
        raise contents.damaged[0][1]
    if not stacks:
        raise DamagedFileError(
            f"{path}: the DICOMDIR lists {len(contents.missing)} images, none of which is there: copy the whole medium."
        )
    if series_uid is not None:
        stacks = [s for s in stacks if s.series_uid == series_uid]
        if not stacks:
            raise SeveralSeriesError(f"{path}: there is no series {series_uid}. It holds:\n{listed}")
    if number is not None:
        if len({(s.study_uid, s.series_uid) for s in stacks}) > 1:
            raise SeveralSeriesError(
                f"{path}: stack={number} needs `series_uid`, as several series are here:\n{listed}"
            )
        stacks = [s for s in stacks if s.number == number]
        if not stacks:
            raise SeveralSeriesError(f"{path}: the series has no stack {number}. It holds:\n{listed}")
    volumes = [s for s in stacks if s.kind != "localizer"]
    if not volumes:
        raise NotCTError(f"{path}: only a localizer (scout) image is here, which is not a CT slice.")
    if len(volumes) == 1:
        return volumes[0]
    if len({s.series_uid for s in volumes}) == 1:
        raise SeveralSeriesError(
            f"{path}: the series holds several stacks; choose one with `stack` (diffusers-ct inspect lists them):\n{listed}"
        )
    raise SeveralSeriesError(f"{path}: several series are here; choose one with `series_uid`:\n{listed}")


def plan_stack(
    contents: Contents, stack: Stack, *, resample: bool = False, slice_spacing_mm: float | None = None
) -> ReadPlan:
    """Checks a stack before any pixel is read.

    Raises:
        CTReadError: why it cannot be read as a volume, and what to do.
    """
    _refuse_incomplete(contents, stack)
    checked: set[int] = set()
    for one in stack.slices:
        check_is_ct(one.header, one.label)
        if one.file.stored.number not in checked:
            checked.add(one.file.stored.number)
            check_declared_size(
                one.file.header,
                one.file.stored.label,
                one.file.stored.size,
                deflated=one.file.deflated,
                frames=max(frame_count(one.file.header), 1),
            )
    geometry, order = slice_geometry([s.header for s in stack.slices], [s.label for s in stack.slices])
    slices = [stack.slices[i] for i in order]
    where = str(contents.path) if len(slices) > 1 else slices[0].label
    _refuse_coincident(where, slices, geometry)
    mendable = None
    irregularity = find_irregularity(geometry)
    if irregularity is not None:
        mendable, can_be = irregularity
        thickness = max((positive_number(s.header, "SliceThickness") or 0.0 for s in slices), default=0.0)
        widest = float(np.diff(geometry.along_mm).max())
        if can_be and 0 < _WIDEST_GAP * thickness < widest:
            raise GeometryError(
                f"{where}: {mendable}, while the slices are {thickness:g} mm thick: this is a choice of single slices and no "
                "volume. Read the slices one by one."
            )
        if not can_be:
            raise GeometryError(f"{where}: {mendable}.")
        if not resample:
            raise GeometryError(f"{where}: {mendable}. Pass resample=True to interpolate it onto a regular grid.")
    if len(slices) == 1 and slice_spacing_mm is None:
        header = slices[0].header
        slice_spacing_mm = positive_number(header, "SpacingBetweenSlices") or positive_number(header, "SliceThickness")
        if slice_spacing_mm is None:
            raise GeometryError(
                f"{where}: a single slice without SliceThickness (0018,0050): give its thickness as `slice_spacing_mm`."
            )
    size = (len(slices), *stack.matrix)
    if 4 * int(np.prod(size)) > _LARGEST_VOLUME_BYTES:
        raise GeometryError(f"{where}: a volume of {size} voxels would take {4 * int(np.prod(size)) / 2**30:.0f} GiB.")
    notes = [*stack.notes, *contents.notes, *_unreadable_elements(slices)]
    return ReadPlan(slices, geometry, mendable, slice_spacing_mm, notes)


def _refuse_incomplete(contents: Contents, stack: Stack) -> None:
    """A damaged or missing file that may belong to the stack must not go unnoticed."""
    folders = {one.file.stored.folder for one in stack.slices}
    others = {one.file.stored.folder for one in contents.slices}
    for stored, error in contents.damaged:
        if stored.folder in folders or stored.folder not in others:
            raise type(error)(
                f"{error} It may be a slice of this series: until it is whole again or lies elsewhere, the series is not read."
            ) from error
    missing = [name for name, uid in contents.missing if uid == stack.series_uid]
    if missing:
        raise DamagedFileError(
            f"{contents.path}: the DICOMDIR lists {len(missing)} images of the series that are not there ({missing[0]} ...): "
            "copy the whole medium."
        )


def _unreadable_elements(slices: list[Slice]) -> list[str]:
    files = {one.file.stored.number: one.file for one in slices}
    counts = Counter(name for file in files.values() for name in file.dropped)
    return [
        f"{name} cannot be read in {n} of {counted(len(files), 'file')} and was left out" for name, n in counts.items()
    ]


def _refuse_coincident(where: str, slices: list[Slice], geometry: SliceGeometry) -> None:
    close = np.flatnonzero(np.diff(geometry.along_mm) < LEAST_SPACING_MM)
    if len(close) == 0:
        return
    a, b = slices[int(close[0])], slices[int(close[0]) + 1]
    uids = {str(one.header.get("SOPInstanceUID")) for one in (a, b)}
    same = (
        "the same SOPInstanceUID but another content" if len(uids) == 1 else "no tag that parts them into acquisitions"
    )
    crowded = len(np.union1d(close, close + 1))
    raise GeometryError(
        f"{where}: {crowded} slices lie at the same position as another, such as {a.label} and {b.label} at "
        f"{geometry.along_mm[int(close[0])]:.2f} mm, with {same}: move one of each pair out of the way."
    )


def assemble(contents: Contents, plan: ReadPlan) -> CTVolume:
    """The whole volume."""
    slices, geometry = plan.slices, plan.geometry
    headers = [one.header for one in slices]
    hu = np.empty((len(slices), int(headers[0].Rows), int(headers[0].Columns)), dtype=np.float32)
    read_pixels(contents, slices, hu)
    if plan.mendable is not None:
        hu, affine, spacing = resample_regular(hu, geometry)
    else:
        affine, spacing = regular_affine(geometry, plan.lone_spacing_mm)
    notes = (*plan.notes, *header_notes(headers, geometry))
    source = DicomSource(tuple(headers), resampled=plan.mendable is not None, notes=notes)
    return CTVolume(hu, (spacing, *geometry.pixel_mm), affine, conditions_of(headers[0]), source)


def read_pixels(contents: Contents, slices: list[Slice], hu: np.ndarray) -> None:
    """Decodes the slices into `hu` (slices, rows, columns) by threads, one frame a thread at a time."""
    places: dict[int, dict[int, int]] = defaultdict(dict)  # file -> frame -> slice
    files: dict[int, DicomFile] = {}
    for k, one in enumerate(slices):
        places[one.file.stored.number][one.frame] = k
        files[one.file.stored.number] = one.file

    def store(k: int, frame: bytes) -> None:
        one = slices[k]
        header = one.header
        hu[k] = to_hu(decode_frame(frame, header, one.label), header)

    def read_file(stored: StoredFile, opener: Callable) -> None:
        with _open_errors(stored), opener() as stream:
            for frame, data in encoded_frames(files[stored.number], stream, set(places[stored.number])):
                store(places[stored.number][frame], data)

    def jobs() -> Iterator[Callable[[], None]]:
        for stored, opener in contents.storage.scan(set(places)):
            wanted = places[stored.number]
            if contents.storage.parallel and len(wanted) == 1:
                yield partial(read_file, stored, opener)
                continue
            with _open_errors(stored), opener() as stream:  # one after another here, decoded by the others
                for frame, data in encoded_frames(files[stored.number], stream, set(wanted)):
                    yield partial(store, wanted[frame], data)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # decoders warn where they had to guess
        warnings.filterwarnings("ignore", message=".*(value|length|VR|bits).*", category=UserWarning)
        _run(jobs(), os.cpu_count() or 1)


class _open_errors:
    """An OSError while reading pixels names the file."""

    def __init__(self, stored: StoredFile) -> None:
        self._stored = stored

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise DamagedFileError(
                f"{self._stored.label}: the file cannot be read ({error.strerror or error})."
            ) from error


def _run(jobs: Iterable[Callable[[], None]], workers: int) -> None:
    """Runs jobs by threads, never more of them under way than threads: each holds a frame."""
    pending: set[Future] = set()
    with ThreadPoolExecutor(workers) as pool:
        for job in jobs:
            if len(pending) >= workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            pending.add(pool.submit(job))
        for future in pending:
            future.result()
