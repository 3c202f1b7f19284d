"""Opening a scan without reading its voxels: DICOM slices are decoded when they are asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..volume import ScanSlices
from .archives import Folder
from .dicom_conditions import conditions_of
from .dicom_files import Contents
from .dicom_geometry import regular_affine
from .dicom_read import DicomSource, ReadPlan, assemble, only_read_errors, plan_scan, read_pixels
from .header_notes import header_notes


def open_dicom(path: Path, *, series_uid: str | None, stack: int | None, resample: bool) -> ScanSlices:
    """A series, checked as far as headers go; see `open_scan`."""
    with only_read_errors(path):
        contents, plan = plan_scan(path, series_uid=series_uid, stack=stack, resample=resample, slice_spacing_mm=None)
        a_file_each = len({one.file.stored.number for one in plan.slices}) == len(plan.slices)
        if plan.mendable is not None or not a_file_each or not isinstance(contents.storage, Folder):
            return ScanSlices.of(assemble(contents, plan))
        headers = [one.header for one in plan.slices]
        affine, spacing = regular_affine(plan.geometry, plan.lone_spacing_mm)
        notes = (*plan.notes, *header_notes(headers, plan.geometry))
        shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
        return ScanSlices(
            shape,
            (spacing, *plan.geometry.pixel_mm),
            affine,
            _reader(path, contents, plan, shape),
            conditions_of(headers[0]),
            DicomSource(tuple(headers), notes=notes),
        )


def _reader(
    path: Path, contents: Contents, plan: ReadPlan, shape: tuple[int, int, int]
) -> Callable[[int, int], np.ndarray]:
    def read(start: int, stop: int) -> np.ndarray:
        slices = plan.slices[start:stop]
        hu = np.empty((len(slices), *shape[1:]), dtype=np.float32)
        with only_read_errors(path):
            read_pixels(contents, slices, hu)
        return hu

    return read
