"""Writing a scan some slices at a time, so that it need not be whole in memory."""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from gzip import GzipFile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..volume import ScanSlices
from .deidentify import Deidentify
from .deidentify_key import DeidentificationKey
from .deidentify_profile import DeidentificationOptions
from .dicom_write import Derivation, DicomSeries
from .metaimage import metaimage_start
from .nifti import nifti_start
from .whole_folder import whole_file, whole_folder

_LEVEL = 1  # of zlib: HU of noisy float32 hardly get smaller at higher ones, which take five times as long


class VolumeWriter:
    """Takes the slices of a scan in their order; made by `open_volume_writer`.

    Args:
        shape: (depth, height, width) of the scan.
        encode: f(number of the slice from 0, HU) -> its bytes.
        store: where bytes of a slice go.
        compressed: whether `store` compresses them.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        encode: Callable[[int, np.ndarray], bytes],
        store: Callable[[int, bytes], None],
        *,
        compressed: bool = False,
    ) -> None:
        self.shape = shape
        self.written = 0
        self._encode, self._store, self._compressed = encode, store, compressed

    def write(self, hu: np.ndarray) -> None:
        """Writes the next slices.

        Args:
            hu: (slices, height, width) in HU.

        Raises:
            ValueError: for another size, more slices than the scan has, or values that cannot be stored.
        """
        if hu.shape[1:] != self.shape[1:] or self.written + len(hu) > self.shape[0]:
            raise ValueError(f"{hu.shape} slices do not fit behind {self.written} of a scan of {self.shape}.")
        for image in hu:
            self._store(self.written, self._encode(self.written, np.asarray(image, dtype=np.float32)))
            self.written += 1

    def seconds_per_slice(self, image_hu: np.ndarray) -> float:
        """What writing a slice (height, width) takes, measured on this one without storing it."""
        start = time.perf_counter()
        data = self._encode(0, np.asarray(image_hu, dtype=np.float32))
        if self._compressed:
            zlib.compress(data, _LEVEL)
        return time.perf_counter() - start


@contextmanager
def open_volume_writer(
    path: Path,
    like: ScanSlices,
    *,
    derivation: Derivation | None,
    deidentify: Deidentify = "basic",
    series_description: str = "diffusers-ct result",
    rescale_slope: float | None = 1.0,
    key: DeidentificationKey | None = None,
    options: DeidentificationOptions | None = None,
) -> Iterator[VolumeWriter]:
    """A writer of a new DICOM folder, NIfTI or MetaImage, which appears at the end, whole, or not at all.

    Args:
        path: of `check_output_path`; its suffix tells the format.
        like: the scan's grid, conditions and source; its voxels are not read.
        derivation: see `write_volume`, and so are the others.
        deidentify: DICOM only.
        series_description: DICOM only.
        rescale_slope: HU per stored unit; None takes for every slice the finest of 0.01, 0.1 and 1 that holds it.
        key: of "basic".
        options: of "basic".

    Raises:
        FileExistsError: if there is something at `path`.
        ValueError: if the source cannot be written, and at the end if slices are missing.
    """
    if path.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(path))
    facts = {} if derivation is None else derivation.to_dict()
    name = path.name.lower()
    if name.endswith(".nii.gz"):
        with (
            whole_file(path) as file,
            GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as packed,
        ):
            packed.write(nifti_start(like, facts))
            with _complete(VolumeWriter(like.shape, _float_bytes, _appended_to(packed), compressed=True)) as writer:
                yield writer
    elif name.endswith(".nii"):
        with whole_file(path) as file:
            file.write(nifti_start(like, facts))
            with _complete(VolumeWriter(like.shape, _float_bytes, _appended_to(file))) as writer:
                yield writer
    elif name.endswith(".mha"):
        with (
            whole_file(path) as file,
            _zlib_stream(file, like, facts) as store,
            _complete(VolumeWriter(like.shape, _float_bytes, store, compressed=True)) as writer,
        ):
            yield writer
    else:
        series = DicomSeries(like, derivation, deidentify, series_description, rescale_slope, key, options)
        with whole_folder(path) as folder:

            def save(number: int, data: bytes) -> None:
                (folder / f"{number + 1:05d}.dcm").write_bytes(data)

            with _complete(VolumeWriter(like.shape, _dicom_bytes(series), save)) as writer:
                yield writer


@contextmanager
def _complete(writer: VolumeWriter) -> Iterator[VolumeWriter]:
    """Refuses to end before all slices are there."""
    yield writer
    if writer.written != writer.shape[0]:
        raise ValueError(f"{writer.written} slices were written of a scan of {writer.shape[0]}.")


def _float_bytes(number: int, image_hu: np.ndarray) -> bytes:
    return image_hu.astype("<f4").tobytes()


def _dicom_bytes(series: DicomSeries) -> Callable[[int, np.ndarray], bytes]:
    def encode(number: int, image_hu: np.ndarray) -> bytes:
        stream = BytesIO()
        series.image(number, image_hu).save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    return encode


def _appended_to(file: BinaryIO | GzipFile) -> Callable[[int, bytes], None]:
    def store(number: int, data: bytes) -> None:
        file.write(data)

    return store


@contextmanager
def _zlib_stream(file: BinaryIO, like: ScanSlices, facts: Mapping[str, Any]) -> Iterator[Callable[[int, bytes], None]]:
    """Compressed voxels of a MetaImage, whose header tells their size and so is written twice."""
    file.write(metaimage_start(like, facts, compressed_bytes=0))
    begin = file.tell()
    packer = zlib.compressobj(_LEVEL)

    def store(number: int, data: bytes) -> None:
        file.write(packer.compress(data))

    yield store
    file.write(packer.flush())
    size = file.tell() - begin
    file.seek(0)
    file.write(metaimage_start(like, facts, compressed_bytes=size))
