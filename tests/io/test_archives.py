"""Zip and tar of a study: read in place, exact; made to do harm: refused, and nothing is left on the disk."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from diffusers_ct import CTVolume
from diffusers_ct.io import CTReadError, DamagedFileError, UnsafeArchiveError, archives, read_volume, write_volume
from tests.io.synthetic import hu_of, write_multiframe, write_series


def pack(folder, path):
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for f in files:
                out.write(f, f"study/{f.name}")
    else:
        with tarfile.open(path, {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")) as out:
            for f in files:
                out.add(f, f"study/{f.name}")
    return path


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz", "s.tar.bz2", "s.tar.xz"])
def test_a_packed_study_is_the_same_volume(tmp_path, name):
    hu = hu_of()
    paths = write_series(tmp_path / "in", hu)
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / "copy.dcm").write_bytes(paths[0].read_bytes())
    before = set(tmp_path.rglob("*"))
    packed = pack(tmp_path / "in", tmp_path / name)
    volume = read_volume(packed)
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.affine_lps, read_volume(tmp_path / "in").affine_lps)
    assert "1 bit-identical copy of images left out" in volume.source.notes
    assert set(tmp_path.rglob("*")) - before == {packed}


@pytest.mark.parametrize("name", ["s.zip", "s.tar.gz"])
def test_multiframe_in_an_archive(tmp_path, name):
    path = write_multiframe(tmp_path / "in" / "e.dcm", {"A": hu_of((6, 64, 64))})
    np.testing.assert_array_equal(read_volume(pack(tmp_path / "in", tmp_path / name)).hu, read_volume(path).hu)


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz"])
def test_a_cut_archive_is_refused(tmp_path, name):
    write_series(tmp_path / "in", hu_of())
    packed = pack(tmp_path / "in", tmp_path / name)
    for fraction in (0.3, 0.6, 0.9):
        (tmp_path / f"cut{name}").write_bytes(packed.read_bytes()[: int(fraction * packed.stat().st_size) // 512 * 512])
        with pytest.raises(CTReadError, match="cut"):
            read_volume(tmp_path / f"cut{name}")


@pytest.mark.parametrize("entry", ["../../evil.dcm", "/evil.dcm", "a/../../evil.dcm", "C:\\evil.dcm"])
def test_entries_that_point_outside_are_refused(tmp_path, entry):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as out:
        out.writestr(entry, b"x")
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as out:
        info = tarfile.TarInfo(entry)
        info.size = 1
        out.addfile(info, io.BytesIO(b"x"))
    for name in ("s.zip", "s.tar.gz"):
        with pytest.raises(UnsafeArchiveError, match="points outside"):
            read_volume(tmp_path / name)
    assert {p.name for p in tmp_path.rglob("*")} == {"s.zip", "s.tar.gz"}


def test_links_are_left_out_and_nested_archives_named(tmp_path):
    hu = hu_of()
    write_series(tmp_path / "in", hu)
    packed = pack(tmp_path / "in", tmp_path / "s.tar")
    with tarfile.open(packed, "a") as out:
        out.add(pack(tmp_path / "in", tmp_path / "other.zip"), "study/other.zip")
        out.add(pack(tmp_path / "in", tmp_path / "other.nii.gz"), "study/other.nii.gz")
        link = tarfile.TarInfo("study/link.dcm")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    volume = read_volume(packed)
    np.testing.assert_array_equal(volume.hu, hu)
    for text in (
        "special files in the archive left out: 1",
        "1 archive beside the images left out",
        "1 NIfTI or MetaImage file",
    ):
        assert any(text in note for note in volume.source.notes), text
    assert not any("study" in note or str(tmp_path) in note for note in volume.source.notes)  # names may be a patient's
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as out:
        out.write(packed, "inner.tar")
    with pytest.raises(CTReadError, match="archives are not looked into"):
        read_volume(tmp_path / "nested.zip")


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch, name):
    monkeypatch.setattr(archives, "_FREE_BYTES", 2**20)
    size = 2**25
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("a.dcm", bytes(size))
    else:
        with tarfile.open(tmp_path / name, "w:gz") as out:
            info = tarfile.TarInfo("a.dcm")
            info.size = size
            out.addfile(info, io.BytesIO(bytes(size)))
    with pytest.raises(UnsafeArchiveError, match="unpacks to more than"):
        read_volume(tmp_path / name)


def test_an_encrypted_zip_and_a_flipped_bit_are_told(tmp_path):
    write_series(tmp_path / "in", hu_of((1, 64, 64)))
    data = bytearray(pack(tmp_path / "in", tmp_path / "s.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    locked = bytearray(data)
    locked[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(CTReadError, match="encrypted"):
        read_volume(tmp_path / "locked.zip")
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(data)
    with pytest.raises(DamagedFileError):
        read_volume(tmp_path / "flipped.zip")


def test_a_file_packed_alone_is_called_what_it_is(tmp_path):
    write_volume(CTVolume.from_array(hu_of(), (2.5, 0.7, 0.7)), tmp_path / "a.nii.gz").rename(tmp_path / "a.gz")
    with pytest.raises(CTReadError, match=r"a packed NIfTI file: name it \.nii\.gz"):
        read_volume(tmp_path / "a.gz")
    (tmp_path / "b.dcm.gz").write_bytes(gzip.compress(write_series(tmp_path / "in", hu_of())[0].read_bytes()))
    with pytest.raises(CTReadError, match="a single DICOM file that was packed: unpack it"):
        read_volume(tmp_path / "b.dcm.gz")
    (tmp_path / "c.txt").write_text("hello")
    with pytest.raises(CTReadError, match=r"not a DICOM image\. NIfTI and MetaImage are told by their names"):
        read_volume(tmp_path / "c.txt")
