"""De-identified copies: the same pixels in the same encoding, nothing of the patient in any byte, whole or not at all."""

import io
import logging
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
from typer.testing import CliRunner

from diffusers_ct import CTVolume
from diffusers_ct.cli import build_app, main
from diffusers_ct.io import (
    CTReadError,
    DamagedFileError,
    DeidentificationKey,
    UnsafeArchiveError,
    archives,
    burned_in,
    deidentify_series,
    read_volume,
    write_volume,
)
from diffusers_ct.io.deidentify_profile import DEVICE
from tests.io.identity import elements_of, found_in, identifying_values
from tests.io.synthetic import SECRETS, hu_of, write_multiframe, write_series
from tests.io.test_archives import pack

KEY = DeidentificationKey("0123456789abcdef" * 4)
SECRET = "Dulcinea"  # stands in every place that is not on the list


def planted(folder: Path, *, behind_pixels: bool = True, **tags) -> Path:
    """A series with the secret in every kind of element, nested, private, in overlays, curves, preamble and padding."""
    for path in write_series(folder, hu_of(), **tags):
        d = pydicom.dcmread(path)
        d.preamble = SECRET.encode().ljust(128, b"!")
        d.file_meta.SourceApplicationEntityTitle = SECRET
        d.file_meta.PrivateInformationCreatorUID, d.file_meta.PrivateInformation = "1.2.3", SECRET.encode()
        for keyword in (
            "ProtocolName", "SeriesDescription", "ImageComments", "DerivationDescription", "PatientAddress", "FrameComments",
            "OtherPatientNames", "RetrieveAETitle", "InstitutionAddress", "RequestedProcedureDescription", "DeviceDescription",
            "ContrastBolusAgent", "AdditionalPatientHistory", "StudyID", "AcquisitionProtocolDescription", "TextValue",
            "RetrieveURL", "ExtendedCodeMeaning", "PersonName", "ClinicalTrialSponsorName", "ClinicalTrialSubjectID",
            "ClinicalTrialSeriesDescription", "ContentCreatorName", "StationName", "DeviceSerialNumber", "MedicalAlerts",
            "IssuerOfPatientID", "AcquisitionComments", "DeviceLabel", "ManufacturerDeviceIdentifier",
        ):  # fmt: skip
            setattr(d, keyword, SECRET)
        d.ICCProfile, d.CertificateOfSigner = SECRET.encode() * 2, SECRET.encode() * 2
        inner = pydicom.Dataset()
        inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "113691", "DCM", SECRET
        inner.PatientName = SECRET
        d.CTDIPhantomTypeCodeSequence = [inner]
        d.RequestAttributesSequence = d.OriginalAttributesSequence = d.DigitalSignaturesSequence = [inner]
        d.ClinicalTrialProtocolEthicsCommitteeName = d.ModifyingSystem = SECRET
        d.IconImageSequence = d.ReferencedStudySequence = d.AcquisitionContextSequence = d.ContentSequence = [inner]
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = d.SOPClassUID, "1.2.3.4"
        reference.PurposeOfReferenceCodeSequence = [inner]
        d.ReferencedImageSequence = [reference]
        shared = pydicom.Dataset()
        shared.PixelMeasuresSequence = [pydicom.Dataset()]
        shared.PixelMeasuresSequence[0].SliceThickness = "3"
        shared.PixelMeasuresSequence[0].ImageComments = SECRET
        d.SharedFunctionalGroupsSequence = [shared]
        for group, creator in ((0x0019, "GEMS_ACQU_01"), (0x0029, "SIEMENS CSA HEADER"), (0x01F1, "ELSCINT1")):
            block = d.private_block(group, creator, create=True)
            block.add_new(0x23, "LO", SECRET)
            block.add_new(0x26, "OB", SECRET.encode())
        d.add_new(0x60000010, "US", 32)
        d.add_new(0x60000022, "LO", SECRET)
        d.add_new(0x60003000, "OW", SECRET.encode() * 12)
        d.add_new(0x50003000, "OW", SECRET.encode())
        d.add_new(0x50000030, "SH", SECRET)
        d.add_new(0x40000010, "LT", SECRET)
        d.add_new(0xFFFCFFFC, "OB", SECRET.encode())
        if behind_pixels:
            d.PixelData += SECRET.encode()
        d.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes() + b"\0" * 4)
        path.rename(path.with_name(f"{SECRET}{path.name}"))
    return folder


def compressed(path: Path) -> Path:
    d = pydicom.dcmread(path)
    d.compress(RLELossless, generate_instance_uid=False)
    d.save_as(path)
    return path


def images(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(f) for f in sorted(folder.rglob("*.dcm"))]


def test_a_secret_in_any_place_does_not_come_through(tmp_path, caplog):
    source = planted(tmp_path / "in", StudyTime="083000")
    identifying = {SECRET, *SECRETS.values(), "Quixote", "Alonso", "Cervantes", "Sancho"}
    identifying |= {
        str(d[k].value) for d in images(source) for k in ("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    }
    assert SECRET in found_in(b"".join(f.read_bytes() for f in source.iterdir()), identifying)
    with caplog.at_level(logging.DEBUG):
        report = deidentify_series(source, tmp_path / "out", key=KEY)
        write_volume(read_volume(tmp_path / "out"), tmp_path / "derived", key=KEY)
    assert (report.written, report.series, report.left_out) == (4, 1, [])
    for file in [*(tmp_path / "out").rglob("*"), *(tmp_path / "derived").rglob("*")]:
        assert SECRET not in file.name
        assert file.is_dir() or not found_in(file.read_bytes(), identifying)
        assert file.is_dir() or file.read_bytes()[:128] == b"\0" * 128
    assert not found_in((caplog.text + repr(report.notes) + repr(report.dropped)).encode(), identifying)
    d = images(tmp_path / "out")[0]
    assert d.CTDIPhantomTypeCodeSequence[0].CodeMeaning == "IEC Body Dosimetry Phantom"
    assert (
        d.ContrastBolusAgent == "CONTRAST"
        and d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 3
    )
    assert d.ImageType[0] == "ORIGINAL" and d.PatientIdentityRemoved == "YES" and d.SeriesDescription == "de-identified"


def test_the_copy_is_the_same_scan(tmp_path):
    write_series(tmp_path / "in", hu_of(), orientation=(0.8, 0.6, 0, -0.6, 0.8, 0))
    deidentify_series(tmp_path / "in", tmp_path / "out", key=KEY)
    old, new = read_volume(tmp_path / "in"), read_volume(tmp_path / "out")
    np.testing.assert_array_equal(new.hu, old.hu)
    np.testing.assert_array_equal(new.affine_lps, old.affine_lps)
    assert new.conditions.kernel == "B30f" and new.conditions.kvp == 120 and new.conditions.sex is None
    before = {d.SOPInstanceUID: d.PixelData for d in images(tmp_path / "in")}
    after = {d.SOPInstanceUID: d.PixelData for d in images(tmp_path / "out")}
    assert {KEY.uid(uid): pixels for uid, pixels in before.items()} == after


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_encodings_stay(tmp_path, syntax):
    for path in write_series(tmp_path / "in", hu_of()):
        old = pydicom.dcmread(path)
        d = pydicom.Dataset()  # of no encoding yet
        for element in old:
            d.add(element)
        d.file_meta = old.file_meta
        if syntax == ExplicitVRBigEndian:
            d.PixelData = np.frombuffer(d.PixelData, "<u2").astype(">u2").tobytes()
        d.file_meta.TransferSyntaxUID = syntax
        d.save_as(path, enforce_file_format=True)
    deidentify_series(tmp_path / "in", tmp_path / "out", key=KEY)
    for d in images(tmp_path / "out"):
        assert d.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_volume(tmp_path / "out").hu, hu_of())


def test_one_key_links_series_runs_and_results(tmp_path):
    for name, day in (("a", "20200101"), ("b", "20200131")):
        write_series(tmp_path / name, hu_of(), StudyDate=day, StudyTime="0800", StudyInstanceUID=f"1.2.{day}")
    for d in images(tmp_path / "b"):
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
            d.SOPClassUID,
            images(tmp_path / "a")[0].SOPInstanceUID,
        )
        d.ReferencedImageSequence = [item]
        d.save_as(d.filename)
    deidentify_series(tmp_path / "a", tmp_path / "a1", key=KEY)
    deidentify_series(tmp_path / "b", tmp_path / "b1", key=KEY)
    deidentify_series(tmp_path / "b", tmp_path / "b2")
    a, b, other = (images(tmp_path / name) for name in ("a1", "b1", "b2"))
    assert b[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID in {d.SOPInstanceUID for d in a}
    assert a[0].PatientID == b[0].PatientID != other[0].PatientID and int(b[0].StudyDate) != 20200131
    volume = read_volume(tmp_path / "a")
    result = images(write_volume(volume, tmp_path / "result", key=KEY))
    assert result[0].StudyInstanceUID == a[0].StudyInstanceUID and result[0].PatientID == a[0].PatientID
    assert {d.SourceImageSequence[0].ReferencedSOPInstanceUID for d in result} == {d.SOPInstanceUID for d in a}
    assert result[0].StudyDate == a[0].StudyDate and result[0].SeriesInstanceUID != a[0].SeriesInstanceUID
    unlinked = images(write_volume(volume, tmp_path / "unlinked"))
    assert unlinked[0].StudyInstanceUID != a[0].StudyInstanceUID


def test_overlay_bits_are_cleared_and_the_pixels_are_not(tmp_path):
    pixels = np.arange(32 * 24, dtype="<u2").reshape(32, 24) % 4096
    for path in write_series(tmp_path / "in", hu_of()):
        d = pydicom.dcmread(path)
        d.BitsStored, d.HighBit = 12, 11
        d.PixelData = (pixels | (pixels % 2 << 15)).astype("<u2").tobytes()
        for tag, vr, value in ((0x0010, "US", 32), (0x0011, "US", 24), (0x0100, "US", 16), (0x0102, "US", 15)):
            d.add_new(0x60000000 + tag, vr, value)
        d.save_as(path)
    deidentify_series(tmp_path / "in", tmp_path / "out", key=KEY)
    for d in images(tmp_path / "out"):
        np.testing.assert_array_equal(np.frombuffer(d.PixelData, "<u2").reshape(32, 24), pixels)
        assert not [e for e in d if e.tag.group == 0x6000]


def test_what_may_carry_text_is_left_out_and_named(tmp_path):
    files = write_series(tmp_path / "in", hu_of(), shuffle=False)
    for path, name, value in zip(
        files, ("ImageType", "BurnedInAnnotation"), (["DERIVED", "SECONDARY", "SCREEN SAVE"], "YES")
    ):
        d = pydicom.dcmread(path)
        setattr(d, name, value)
        d.save_as(path)
    (tmp_path / "in" / "notes.txt").write_text("Quixote")
    done = CliRunner().invoke(build_app(), ["deidentify", str(tmp_path / "in"), str(tmp_path / "out")])
    assert done.exit_code == 1, done.output
    assert "2 images of 1 series" in done.output and done.output.count("not copied") == 3
    assert "screen" in done.output and "BurnedInAnnotation" in done.output and "no DICOM file" in done.output
    assert len(images(tmp_path / "out")) == 2
    with pytest.raises(ValueError, match="may carry text"):
        write_volume(read_volume(files[1]), tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_the_command_keeps_a_key_and_refuses_to_overwrite(tmp_path):
    write_series(tmp_path / "in", hu_of(), BurnedInAnnotation="NO")
    key = tmp_path / "secret.key"

    def run(*arguments: object):
        return CliRunner().invoke(build_app(), ["deidentify", *map(str, arguments)])

    for out in ("a", "b"):
        done = run(tmp_path / "in", tmp_path / out, "--key-file", key)
        assert done.exit_code == 0 and "4 images of 1 series" in done.output, done.output
    assert [d.SOPInstanceUID for d in images(tmp_path / "a")] == [d.SOPInstanceUID for d in images(tmp_path / "b")]
    secret = key.read_text().strip().encode()
    assert all(secret not in f.read_bytes() for f in (tmp_path / "a").rglob("*.dcm"))
    assert isinstance(run(tmp_path / "in", tmp_path / "a").exception, FileExistsError)
    inside = run(tmp_path / "in", tmp_path / "c", "--key-file", tmp_path / "c" / "key")
    assert isinstance(inside.exception, ValueError) and not (tmp_path / "c").exists()
    assert isinstance(run(tmp_path / "in", tmp_path / "c", "--dates", "keep").exception, ValueError)
    assert isinstance(
        run(tmp_path / "none", tmp_path / "c", "--key-file", tmp_path / "new").exception, FileNotFoundError
    )
    assert not (tmp_path / "new").exists()
    run(tmp_path / "in", tmp_path / "d", "--dates", "remove", "--remove-device", "--keep-characteristics")
    d = images(tmp_path / "d")[0]
    assert d.StudyDate == "" and d.PatientSex == "F" and d.PatientAge == "090Y"


@pytest.mark.parametrize("damage", ["crash", "stop", "none"])
def test_whole_or_not_at_all(tmp_path, monkeypatch, damage):
    write_series(tmp_path / "in", hu_of())
    if damage == "none":
        shutil.rmtree(tmp_path / "in")
        (tmp_path / "in").mkdir()
    else:
        error = OSError(28, "No space left") if damage == "crash" else KeyboardInterrupt()
        monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises({"crash": OSError, "stop": KeyboardInterrupt, "none": CTReadError}[damage]):
        deidentify_series(tmp_path / "in", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def impossible(path: Path) -> None:
    """A text where a number is needed; the error that it brings about quotes it."""
    path.write_bytes(path.read_bytes().replace(b"(\x00S\x10DS\x04\x001.0 ", b"(\x00S\x10DS\x04\x00El T"))
    assert b"El T" in path.read_bytes()


ODD = {
    "cut": cut,
    "text": lambda path: path.write_text(f"no image of {SECRET}"),
    "empty": lambda path: path.write_bytes(b""),
    "impossible": impossible,
    "unreadable": lambda path: (path.unlink(), path.symlink_to("/proc/self/mem")),
    "head": lambda path: path.write_bytes(path.read_bytes()[:700]),
}


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(
            odd,
            marks=pytest.mark.skipif(odd == "unreadable" and not Path("/proc/self/mem").exists(), reason="no /proc"),
        )
        for odd in ODD
    ],
)
def test_one_odd_file_is_left_out_and_the_others_are_copied(tmp_path, odd):
    files = sorted(write_series(tmp_path / "in", hu_of(), BurnedInAnnotation="NO"))
    files[2] = files[2].rename(files[2].with_name(f"IM002{SECRET}.dcm"))
    ODD[odd](files[2])
    done = CliRunner().invoke(build_app(), ["deidentify", str(tmp_path / "in"), str(tmp_path / "out")])
    assert done.exit_code == 1, done.output
    assert "3 images of 1 series" in done.output and done.output.count("not copied: file 3: ") == 1
    assert SECRET not in done.output and "El T" not in done.output
    assert len(images(tmp_path / "out")) == 3


def test_an_image_that_cannot_be_written_whole_is_left_out_whole(tmp_path, monkeypatch):
    write_series(tmp_path / "in", hu_of())
    write = pydicom.Dataset.save_as
    calls = []

    def save(self, file, **options):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise ValueError(f"a value of {SECRET} cannot be encoded")
        write(self, file, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", save)
    report = deidentify_series(tmp_path / "in", tmp_path / "out")
    assert report.written == 3 and len(images(tmp_path / "out")) == 3
    assert report.left_out == [("file 2", "an element of the header has an impossible value (ValueError).")]


def test_nothing_to_copy_ends_with_status_2_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    for file in write_series(tmp_path / "in", hu_of()):
        cut(file)
        file.rename(file.with_name(f"{SECRET}{file.name}"))
    key = tmp_path / "key"
    monkeypatch.setattr(
        "sys.argv", ["diffusers-ct", "deidentify", str(tmp_path / "in"), str(tmp_path / "out"), "--key-file", str(key)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("cut off") == 4 and SECRET not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.mha"])
def test_files_that_are_no_dicom_are_told_that_only_dicom_is_taken(tmp_path, name):
    write_volume(CTVolume.from_array(hu_of(), (2.5, 0.7, 0.7)), tmp_path / name)
    arguments = [tmp_path / name, tmp_path / "public", "--key-file", tmp_path / "key"]
    done = CliRunner().invoke(build_app(), ["deidentify", *map(str, arguments)])
    assert isinstance(done.exception, CTReadError) and "`deidentify` takes DICOM only" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_refused_command_writes_no_key_and_keeps_an_old_one(tmp_path):
    write_series(tmp_path / "in", hu_of())
    old = KEY.save(tmp_path / "old")

    def refused(*arguments: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        done = CliRunner().invoke(build_app(), ["deidentify", *map(str, arguments)])
        assert isinstance(done.exception, (ValueError, OSError)), done.output
        assert sorted(tmp_path.rglob("*")) == before

    for key in (tmp_path / "new", old):
        refused(tmp_path / "in", tmp_path / "in" / "out", "--key-file", key)
        refused(tmp_path / "in", tmp_path / "in", "--key-file", key)
        refused(tmp_path / "none", tmp_path / "out", "--key-file", key)
        refused(tmp_path / "in", tmp_path / "out", "--key-file", key, "--dates", "keep")
        refused(old, tmp_path / "out", "--key-file", key)  # read, and nothing in it
    refused(tmp_path / "in", tmp_path / "out", "--key-file", tmp_path / "in" / "key")
    assert DeidentificationKey.load(old) == KEY
    no_folder = tmp_path / "none" / "key"  # the paths are looked at first
    done = CliRunner().invoke(
        build_app(), ["deidentify", str(tmp_path / "in"), str(tmp_path / "in" / "out"), "--key-file", str(no_folder)]
    )
    assert "lies within" in str(done.exception)


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz", "s.tar.xz"])
def test_an_archive_is_copied_as_its_folder_and_its_names_are_not_told(tmp_path, name):
    planted(tmp_path / "in" / SECRET)
    write_multiframe(tmp_path / "in" / SECRET / "frames.dcm", {SECRET: hu_of((6, 64, 64))})
    (tmp_path / "in" / f"{SECRET}.txt").write_text(SECRET)
    odd = sorted((tmp_path / "in" / SECRET).iterdir())[0]
    odd.write_bytes(odd.read_bytes()[: odd.stat().st_size // 3])
    packed = pack(tmp_path / "in", tmp_path / name)
    deidentify_series(tmp_path / "in", tmp_path / "from_folder", key=KEY)
    KEY.save(tmp_path / "key")
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "from_archive"
    done = CliRunner().invoke(build_app(), ["deidentify", str(packed), str(out), "--key-file", str(tmp_path / "key")])
    assert done.exit_code == 1 and "4 images of 2 series" in done.output, done.output
    assert done.output.count("not copied: file ") == 2 and SECRET not in done.output
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(out) and SECRET not in path.name for path in new)
    assert sorted(f.read_bytes() for f in out.rglob("*.dcm")) == sorted(
        f.read_bytes() for f in (tmp_path / "from_folder").rglob("*.dcm")
    )
    assert not any(found_in(f.read_bytes(), {SECRET}) for f in out.rglob("*.dcm"))


@pytest.mark.parametrize("name", ["s.zip", "s.tar.gz"])
def test_large_compressed_images_are_read_within_an_archive(tmp_path, name):
    hu = hu_of((3, 256, 256))  # of noise: no fragment is smaller than what a stream of an archive keeps to go back
    files = write_series(tmp_path / "in", hu)
    compressed(files[0])
    d = pydicom.dcmread(files[1])
    d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    d.save_as(files[1])
    report = deidentify_series(pack(tmp_path / "in", tmp_path / name), tmp_path / "out")
    assert (report.written, report.left_out) == (3, [])
    np.testing.assert_array_equal(read_volume(tmp_path / "out").hu, hu)


def test_archives_that_do_harm_are_refused_whole_without_their_names(tmp_path, monkeypatch):
    files = write_series(tmp_path / "in", hu_of())
    for name in ("s.zip", "s.tar.gz"):
        whole = pack(tmp_path / "in", tmp_path / name).read_bytes()
        (tmp_path / f"cut{name}").write_bytes(whole[: len(whole) * 3 // 4])
    with zipfile.ZipFile(tmp_path / "outside.zip", "w") as out:
        out.write(files[0], "one.dcm")
        out.writestr(f"../{SECRET}.dcm", b"x")
    with tarfile.open(tmp_path / "outside.tar", "w") as out:
        out.add(files[0], "one.dcm")
        out.add(files[1], f"a/../../{SECRET}.dcm")
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as out:
        out.writestr(f"{SECRET}.dcm", b"x")
    locked = bytearray((tmp_path / "locked.zip").read_bytes())
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    monkeypatch.setattr(archives, "_FREE_BYTES", 2**16)
    bomb = bytearray(files[0].read_bytes()) + b"\0" * 2**23
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as out:
        info = tarfile.TarInfo("bomb.dcm")
        info.size = len(bomb)
        out.addfile(info, io.BytesIO(bomb))
    kinds = {
        "cuts.zip": DamagedFileError, "cuts.tar.gz": DamagedFileError, "outside.zip": UnsafeArchiveError,
        "outside.tar": UnsafeArchiveError, "locked.zip": CTReadError, "bomb.tar.gz": UnsafeArchiveError,
    }  # fmt: skip
    for name, kind in kinds.items():
        with pytest.raises(kind) as caught:
            deidentify_series(tmp_path / name, tmp_path / "out")
        assert str(tmp_path / name) in str(caught.value) and SECRET not in str(caught.value), name
        assert not (tmp_path / "out").exists()


def test_a_damaged_entry_is_left_out_and_not_named(tmp_path):
    files = write_series(tmp_path / "in", hu_of())
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as out:
        for k, file in enumerate(files):
            out.write(file, f"{SECRET}/{k}.dcm")
    content = bytearray((tmp_path / "s.zip").read_bytes())
    at = content.index(files[1].read_bytes()) + files[1].stat().st_size - 7  # a pixel
    content[at] ^= 1
    (tmp_path / "s.zip").write_bytes(content)
    report = deidentify_series(tmp_path / "s.zip", tmp_path / "out")
    assert report.written == 3 and [name for name, _ in report.left_out] == ["file 2"]
    assert "damaged" in report.left_out[0][1] and SECRET not in report.left_out[0][1]


def with_text(hu: np.ndarray, frame: int) -> np.ndarray:
    picture = Image.new("1", hu.shape[:0:-1])
    ImageDraw.Draw(picture).text((4, 4), "QUIXOTE A", fill=1)
    hu = np.full_like(hu, -1000.0)
    hu[:, 40:60, 20:44] = 40.0
    hu[frame][np.asarray(picture)] = 1000.0
    return hu


def test_a_compressed_copy_ends_once(tmp_path):
    for path in write_series(tmp_path / "in", hu_of()):
        compressed(path)
    deidentify_series(tmp_path / "in", tmp_path / "out", key=KEY)
    for d in images(tmp_path / "out"):
        assert d.file_meta.TransferSyntaxUID == RLELossless and max(list(d.keys())) == 0x7FE00010
        assert Path(d.filename).read_bytes().count(b"\xfe\xff\xdd\xe0") == 1
    np.testing.assert_array_equal(read_volume(tmp_path / "out").hu, hu_of())


@pytest.mark.parametrize("encoded", [compressed, lambda path: path])
def test_every_frame_is_searched_for_drawn_text_within_bounds(tmp_path, monkeypatch, encoded):
    hu = hu_of((5, 64, 64))
    encoded(write_multiframe(tmp_path / "plain.dcm", {"A": hu}, BurnedInAnnotation="NO"))
    report = deidentify_series(tmp_path / "plain.dcm", tmp_path / "plain")
    assert report.written == 1 and report.notes == []
    for frame in range(5):
        path = tmp_path / f"{frame}.dcm"
        drawn = encoded(write_multiframe(path, {"A": with_text(hu, frame)}, BurnedInAnnotation="NO"))
        with pytest.raises(CTReadError, match="line of text"):
            deidentify_series(drawn, tmp_path / "out")
    monkeypatch.setattr(burned_in, "_MOST_PIXELS", 4 * 64 * 64)
    report = deidentify_series(tmp_path / "plain.dcm", tmp_path / "bounded")
    assert "could not be searched for text, or not all of their frames" in report.notes[0]


def test_a_copy_is_not_written_into_its_source(tmp_path):
    write_series(tmp_path / "in", hu_of())
    with pytest.raises(ValueError, match="lies within"):
        deidentify_series(tmp_path / "in", tmp_path / "in" / "out")


# --- real files

SINGLES = (
    "CT0012_enhanced_multiframe_jpegll", "CT1_J2KI", "CT1_J2KR", "CT1_JLSL", "CT1_JLSN", "CT1_JPLL", "CT1_RLE",
    "CT1_UNC.explicit_big_endian", "CT1_UNC.implicit_little_endian", "CT_small", "barre_CT_JPEG70", "explicit_VR-UN_pancreas",
    "chest_minimal_header", "nysbu_A002304_axial_19001231-076", "nysbu_A046441_axial_19010101-23",
    "nysbu_A067967_sagittal_19001006-070", "nysbu_A072894_coronal_19001203-067", "philips_skullbase_jpegll", "rtplan_ct.0",
)  # fmt: skip
FOLDERS = (
    "series/abdomen_siemens_jpeg2000", "series/chest_lidc0314_philips", "series/geometry_tilt_missing_slice_noisepixels",
    "series/head_ge_tilt_variable_spacing", "series/headphantom_philips_tilt", "series/waterphantom_ge",
    "pairs/mayo_L096_D45f_3mm", "pairs/mayo_L143_B30f_3mm", "pairs/mayo_L143_D45f_3mm", "pairs/mayo_L506_B30f_1mm",
)  # fmt: skip


def read_all(path: Path) -> list[pydicom.Dataset]:
    return [
        pydicom.dcmread(f, force=True)
        for f in ([path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()))
    ]


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*(f"singles/{s}.dcm" for s in SINGLES), *FOLDERS])
def test_nothing_that_identifies_survives_in_real_files_and_their_pixels_do(real_data, tmp_path, name, caplog):
    source = real_data / name
    with caplog.at_level(logging.DEBUG):
        report = deidentify_series(source, tmp_path / "out", key=KEY)
    old = read_all(source)
    assert report.written == len(old) and report.left_out == []
    values = set().union(*(identifying_values(d, kept=DEVICE) for d in old))
    assert values
    copies = sorted((tmp_path / "out").rglob("*.dcm"))
    for file in copies:
        d = pydicom.dcmread(file)
        content = file.read_bytes()
        header = content[: len(content) - len(d.PixelData)]
        assert [tag for tag in list(d.keys()) if tag >= 0x7FE00010] == [0x7FE00010]
        assert not found_in(header, values)
        assert not found_in(content, {v for v in values if len(v) >= 8})
        private = {e.value for e in elements_of(d) if e.tag.is_private_creator}
        assert private <= {"GEMS_ACQU_01", "GEMS_PARM_01", "GEMS_HELIOS_01", "GEMS_SERS_01", "ELSCINT1"}
    assert not found_in(caplog.text.encode(), values)
    uids = {KEY.uid(d.get("SOPInstanceUID") or d.file_meta.MediaStorageSOPInstanceUID): d for d in old}
    for file in copies[:6]:
        new = pydicom.dcmread(file)
        before = uids[new.SOPInstanceUID]
        assert new.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
        if "enhanced" in name:
            continue  # its palette is left out, without which pydicom decodes alike but warns
        np.testing.assert_array_equal(new.pixel_array, before.pixel_array)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
def test_real_damaged_files_are_refused_whole_or_copied_never_half(real_data, tmp_path):
    for file in sorted((real_data / "malformed").iterdir()):
        try:
            report = deidentify_series(file, tmp_path / file.name, key=KEY)
        except CTReadError as error:
            assert not (tmp_path / file.name).exists() and file.name in str(error)
        else:
            assert report.written == 1
    with pytest.raises(CTReadError, match="cut off"):
        deidentify_series(real_data / "malformed" / "truncated_pixeldata.dcm", tmp_path / "cut")


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "marker"), [("CT1_JPLL", b"\xff\xd8"), ("CT1_JLSL", b"\xff\xd8"), ("CT1_J2KR", b"\xff\x4f")]
)
def test_comments_in_compressed_pixels_are_blanked(real_data, tmp_path, name, marker):
    d = pydicom.dcmread(real_data / "singles" / f"{name}.dcm")
    before = d.pixel_array.copy()
    (code,) = list(pydicom.encaps.generate_frames(d.PixelData, number_of_frames=1))
    if marker == b"\xff\xd8":
        comment = b"\xff\xfe" + (2 + len(SECRET)).to_bytes(2, "big") + SECRET.encode()
        application = b"\xff\xe5" + (2 + len(SECRET)).to_bytes(2, "big") + SECRET.encode()
        code = code[:2] + comment + application + code[2:]
    else:
        end = 4 + int.from_bytes(code[4:6], "big")  # after SIZ
        comment = b"\xff\x64" + (4 + len(SECRET)).to_bytes(2, "big") + b"\0\1" + SECRET.encode()
        code = code[:end] + comment + code[end:]
    code += SECRET.encode()
    d.PixelData = pydicom.encaps.encapsulate([code + b"\0" * (len(code) % 2)])
    d.save_as(tmp_path / "in.dcm")
    assert SECRET.encode() in (tmp_path / "in.dcm").read_bytes()
    deidentify_series(tmp_path / "in.dcm", tmp_path / "out", key=KEY)
    (copy,) = (tmp_path / "out").rglob("*.dcm")
    assert SECRET.encode() not in copy.read_bytes()
    np.testing.assert_array_equal(pydicom.dcmread(copy).pixel_array, before)
