"""Reading from files and archive entries that may lie about their size."""

import lzma
import zipfile
import zlib
from typing import BinaryIO

from .errors import CTReadError, DamagedFileError

_LOOKBACK = 2**15  # pydicom steps back by a few bytes, at most by the 8 KiB in which it searches a delimiter


class BoundedStream:
    """A readable, seekable stream that never takes more memory than the file has bytes, nor more than is allowed.

    Python's own files set memory aside for as many bytes as are asked for, so that one wrong length in a header could
    ask for gigabytes. A `forward_only` source (a compressed archive entry) is never read twice: one may go back by a few
    kilobytes, which are kept, and forward by reading on.

    Args:
        raw: the source, at its first byte.
        size: its length in bytes.
        label: its name in messages.
        forward_only: whether stepping back is slow or impossible.
        allowed: bytes that may be asked for in total until `allow` is called.
    """

    def __init__(self, raw: BinaryIO, size: int, label: str, *, forward_only: bool = False, allowed: int):
        self._raw, self._size, self._label, self._forward = raw, size, label, forward_only
        self._position = self._source_position = 0
        self._kept = bytearray()
        self.allow(allowed)

    def allow(self, count: int) -> None:
        """Sets how many bytes may be asked for from now on."""
        self._allowed = count

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._size}[whence]
        target = base + offset
        if target < 0:
            raise OSError(f"{self._label}: a position before the beginning of the file.")
        if self._forward and target < self._source_position - len(self._kept):
            raise DamagedFileError(f"{self._label}: it cannot be read in one pass; unpack the archive first.")
        self._position = target
        return target

    def read(self, count: int | None = -1) -> bytes:
        left = max(self._size - self._position, 0)
        wanted = left if count is None or count < 0 else min(count, left)
        if wanted > self._allowed:
            raise DamagedFileError(f"{self._label}: its elements are larger than those of any CT image.")
        self._allowed -= wanted
        try:
            data = self._read_forward(wanted) if self._forward else self._read_seekable(wanted)
        except CTReadError:
            raise
        except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise DamagedFileError(
                f"{self._label}: this entry of the archive is damaged or packed in an unknown way ({error})."
            ) from error
        self._position += len(data)
        return data

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> "BoundedStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_seekable(self, wanted: int) -> bytes:
        if self._source_position != self._position:
            self._raw.seek(self._position)
        data = self._raw.read(wanted)
        self._source_position = self._position + len(data)
        return data

    def _read_forward(self, wanted: int) -> bytes:
        while self._source_position < self._position:  # skip
            if not self._take(min(self._position - self._source_position, 2**20)):
                return b""
        behind = self._source_position - self._position
        old = bytes(self._kept[len(self._kept) - behind : len(self._kept) - behind + wanted]) if behind else b""
        return old + self._take(wanted - len(old)) if wanted > len(old) else old

    def _take(self, count: int) -> bytes:
        data = self._raw.read(count)
        self._source_position += len(data)
        self._kept += data[-_LOOKBACK:]
        if len(self._kept) > 2 * _LOOKBACK:
            del self._kept[:-_LOOKBACK]
        return data
