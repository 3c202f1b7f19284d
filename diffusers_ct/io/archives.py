"""A zip or tar file of a study, read in place: nothing of it is written to disk, and it cannot fill the memory."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .bounded_stream import BoundedStream
from .errors import CTReadError, DamagedFileError, UnsafeArchiveError

# What a study may unpack to. CT packs 2 to 4 times; empty phantoms more, hence the free allowance.
_FREE_BYTES = 2**30
_LARGEST_RATIO = 100
_MOST_ENTRIES = 200_000
_LARGEST_TAR_FIELD = 2**20  # tarfile reads extended headers whole
LARGEST_HEADER_BYTES = 2**27

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd")
_NESTED = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".gz", ".7z", ".rar")


@dataclass(frozen=True)
class StoredFile:
    """A file of a folder or an entry of an archive.

    Attributes:
        number: its place in the order of the storage.
        label: how messages name it.
        folder: the folder in which it lies.
        size: bytes, as declared.
    """

    number: int
    label: str
    folder: str
    size: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.label.rsplit("!", 1)[-1].replace("\\", "/")).name

    @property
    def is_archive(self) -> bool:
        return self.name.lower().endswith(_NESTED) and not self.is_volume

    @property
    def is_volume(self) -> bool:
        """Whether its name is that of a NIfTI or MetaImage file."""
        return self.name.lower().endswith(VOLUME_SUFFIXES)


Opener = Callable[[], BoundedStream]


class Folder:
    """Files on disk; any of them can be opened at any time, from any thread."""

    parallel = True

    def __init__(self, paths: list[Path]) -> None:
        self.files = [StoredFile(i, str(p), str(p.parent), p.stat().st_size) for i, p in enumerate(paths)]
        self.notes: list[str] = []

    def scan(self, wanted: set[int] | None = None) -> Iterator[tuple[StoredFile, Opener]]:
        for file in self.files:
            if wanted is None or file.number in wanted:
                yield file, partial(_open_file, file)


def _open_file(file: StoredFile) -> BoundedStream:
    return BoundedStream(open(file.label, "rb"), file.size, file.label, allowed=LARGEST_HEADER_BYTES)


class ZipArchive:
    """Entries of a zip file; any can be opened at any time, from any thread."""

    parallel = True

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise DamagedFileError(f"{path}: the zip file is damaged or cut off ({error}).") from error
        self._budget = _Budget(path)
        there = [e for e in self._zip.infolist() if not e.is_dir()]
        entries = [e for e in there if not stat.S_ISLNK(e.external_attr >> 16)]
        links = len(there) - len(entries)
        self.notes = [f"links in the archive left out: {links}"] if links else []
        self._budget.count_entries(len(entries))
        self._budget.check(sum(e.file_size for e in entries))
        self._entries = entries
        self.files = []
        for i, entry in enumerate(entries):
            check_entry_name(entry.filename, path)
            self.files.append(_stored(i, path, entry.filename, entry.file_size))
            if entry.flag_bits & 1:
                raise CTReadError(f"{self.files[-1].label}: the entry is encrypted: unpack it with its password first.")

    def scan(self, wanted: set[int] | None = None) -> Iterator[tuple[StoredFile, Opener]]:
        for file in self.files:
            if wanted is None or file.number in wanted:
                yield file, partial(self._open, file)

    def _open(self, file: StoredFile) -> BoundedStream:
        try:
            raw = self._zip.open(self._entries[file.number])
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError) as error:
            raise DamagedFileError(
                f"{file.label}: the entry is damaged or packed in an unknown way ({error})."
            ) from error
        return BoundedStream(raw, file.size, file.label, forward_only=True, allowed=LARGEST_HEADER_BYTES)  # type: ignore[arg-type]


class TarArchive:
    """Entries of a tar file, plain or compressed; they come one after another, each open only until the next."""

    parallel = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.notes: list[str] = []

    def scan(self, wanted: set[int] | None = None) -> Iterator[tuple[StoredFile, Opener]]:
        budget = _Budget(self._path)
        count, links = 0, 0
        last = None if wanted is None else max(wanted, default=-1)
        try:
            with _decompressed(self._path) as raw:
                source = _SpendingReader(raw, budget, self._path)
                tar = tarfile.TarFile(fileobj=source)  # type: ignore[arg-type]
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]
                    check_entry_name(entry.name, self._path)
                    if not entry.isreg() or entry.issparse():
                        links += not entry.isdir()
                        continue
                    file = _stored(count, self._path, entry.name, entry.size)
                    count += 1
                    budget.count_entries(count)
                    if wanted is None or file.number in wanted:
                        yield file, partial(source.entry, file, entry.offset_data)
                    if file.number == last:
                        return
                source.seek(tar.offset)
                if source.read(tarfile.BLOCKSIZE).strip(b"\0") or source.tell() == tar.offset:
                    raise DamagedFileError(f"{self._path}: the archive is cut off: it has no end mark.")
        except CTReadError:
            raise
        except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError) as error:
            raise DamagedFileError(f"{self._path}: the archive is damaged or cut off ({error}).") from error
        self.notes = [f"links and special files in the archive left out: {links}"] if links else []


Storage = Folder | ZipArchive | TarArchive


def archive_at(path: Path) -> ZipArchive | TarArchive | None:
    """The archive in this file, told by its first bytes; None if it is none."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[128:132] == b"DICM":
        return None
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return ZipArchive(path)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")):
        _refuse_single(path)
        return TarArchive(path)
    return TarArchive(path) if head[257:262] == b"ustar" else None


def _refuse_single(path: Path) -> None:
    """A file that was packed alone is no archive; what is damaged is for the archive to tell."""
    try:
        with _decompressed(path) as stream:
            head = stream.read(512)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0":
        raise CTReadError(f"{path}: a packed NIfTI file: name it .nii.gz to have it read.")
    if head[128:132] == b"DICM":
        raise CTReadError(f"{path}: a single DICOM file that was packed: unpack it first.")


def check_entry_name(name: str, archive: Path) -> None:
    """Refuses an archive made to write outside the folder into which one unpacks it.

    Raises:
        UnsafeArchiveError: naming the entry.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise UnsafeArchiveError(
            f"{archive}: the entry {name!r} points outside the archive. Such archives are made to overwrite files: it is "
            "not read. If you trust it, pack it anew with relative names."
        )


def _stored(number: int, archive: Path, name: str, size: int) -> StoredFile:
    label = f"{archive}!{name}"
    return StoredFile(number, label, label.rpartition("/")[0] if "/" in name else f"{archive}!", size)


def _decompressed(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        head = stream.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.open(path)  # type: ignore[return-value]
    if head.startswith(b"\xfd7zXZ\x00"):
        return lzma.open(path)  # type: ignore[return-value]
    return path.open("rb")


class _Budget:
    """How much an archive may unpack to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._allowed = max(_FREE_BYTES, _LARGEST_RATIO * path.stat().st_size)

    def check(self, count: int) -> None:
        if count > self._allowed:
            raise UnsafeArchiveError(
                f"{self._path}: the archive of {self._path.stat().st_size} bytes unpacks to more than {self._allowed}: it "
                "is not read. If you trust it, unpack it and name the folder."
            )

    def count_entries(self, count: int) -> None:
        if count > _MOST_ENTRIES:
            raise UnsafeArchiveError(
                f"{self._path}: the archive has more than {_MOST_ENTRIES} entries: name a smaller one."
            )


class _SpendingReader:
    """Counts what is taken from the decompressor, skipped bytes too, and refuses tar fields of absurd length."""

    def __init__(self, raw: BinaryIO, budget: _Budget, path: Path) -> None:
        self._raw, self._budget, self._path = raw, budget, path

    def read(self, count: int = -1) -> bytes:
        if count < 0 or count > _LARGEST_TAR_FIELD:
            raise UnsafeArchiveError(f"{self._path}: the archive has a header field of absurd length: it is not read.")
        return self._take(count)

    def seek(self, position: int) -> int:
        while (left := position - self._raw.tell()) > 0:  # by reading, so that a bomb is noticed on the way
            if not self._take(min(left, _LARGEST_TAR_FIELD)):
                break
        if left < 0:
            self._raw.seek(position)
        return self._raw.tell()

    def tell(self) -> int:
        return self._raw.tell()

    def entry(self, file: StoredFile, offset: int) -> BoundedStream:
        """The bytes of one entry; to be used before the next is asked for."""
        self.seek(offset)
        reader: Any = _EntryReader(self._take)
        return BoundedStream(reader, file.size, file.label, forward_only=True, allowed=LARGEST_HEADER_BYTES)

    def _take(self, count: int) -> bytes:
        self._budget.check(self._raw.tell() + count)
        return self._raw.read(count)


class _EntryReader:
    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read

    def close(self) -> None:
        """The archive stays open."""
