"""Encodings that no real file here has, made on the spot; code streams that declare another image than the header."""

import zlib

import numpy as np
import openjpeg.utils
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from diffusers_ct.io import CTReadError, DamagedFileError, NotCTError, read_volume
from tests.io.synthetic import hu_of, write_multiframe, write_series


@pytest.fixture
def hu():
    return hu_of((1, 48, 40))


@pytest.fixture
def dataset(tmp_path, hu):
    return pydicom.dcmread(write_series(tmp_path / "in", hu)[0])


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_native_encodings_are_exact(tmp_path, dataset, hu, syntax):
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    del dataset[0x00291001], dataset[0x00290010]
    dataset.file_meta.TransferSyntaxUID = syntax
    plain = pydicom.Dataset(dataset)
    plain.file_meta = dataset.file_meta
    pydicom.dcmwrite(
        tmp_path / "x.dcm",
        plain,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "x.dcm").hu, hu)


def _deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        ("1.2.840.10008.1.2.1.98", lambda data, image: data),
        ("1.2.840.10008.1.2.8.1", lambda data, image: _deflate(data)),
        # the reader of HTJ2K takes any JPEG 2000 code stream; no encoder for HT blocks is at hand
        ("1.2.840.10008.1.2.4.201", lambda data, image: openjpeg.utils.encode_array(image)),
        ("1.2.840.10008.1.2.4.90", lambda data, image: openjpeg.utils.encode_array(image)),
    ],
)
def test_encapsulated_encodings_are_exact(tmp_path, dataset, hu, syntax, encode):
    image = np.frombuffer(dataset.PixelData, "<i2").reshape(48, 40)
    dataset.PixelData = encapsulate([encode(image.tobytes(), image)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    pydicom.dcmwrite(tmp_path / "x.dcm", dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "x.dcm").hu, hu)


@pytest.mark.parametrize("has_offsets", [True, False])
def test_compressed_frames_with_and_without_offsets(tmp_path, has_offsets):
    path = write_multiframe(tmp_path / "e.dcm", {"A": hu_of((5, 48, 40))})
    expected = read_volume(path).hu
    d = pydicom.dcmread(path)
    frames = [openjpeg.utils.encode_array(image) for image in d.pixel_array]
    d.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=has_offsets)
    d["PixelData"].is_undefined_length = True
    d.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.90")
    d.save_as(path)
    np.testing.assert_array_equal(read_volume(path).hu, expected)


def test_rle_multiframe(tmp_path):
    path = write_multiframe(tmp_path / "e.dcm", {"A": hu_of((5, 48, 40))})
    expected = read_volume(path).hu
    d = pydicom.dcmread(path)
    d.compress(RLELossless, generate_instance_uid=False)
    d.save_as(path)
    np.testing.assert_array_equal(read_volume(path).hu, expected)


@pytest.mark.parametrize(
    ("syntax", "error", "message"),
    [
        ("1.2.840.113619.5.2", NotCTError, "transfer syntax"),  # a vendor's own: pixels in another byte order
        ("1.2.840.10008.1.2.4.100", NotCTError, "transfer syntax"),  # MPEG2
        ("1.2.840.10008.1.2.4.50", CTReadError, "JPEG Baseline"),
    ],
)
def test_unknown_and_wrong_encodings_are_named(tmp_path, dataset, syntax, error, message):
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([dataset.PixelData])
    dataset["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(tmp_path / "x.dcm", dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    with pytest.raises(error, match=message):
        read_volume(tmp_path / "x.dcm")


@pytest.mark.parametrize(("name", "value"), [("HighBit", 11), ("BitsStored", 12)])
def test_bits_that_are_not_certain_are_refused(tmp_path, dataset, name, value):
    setattr(dataset, name, value)
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(DamagedFileError, match="HighBit"):
        read_volume(tmp_path / "x.dcm")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["JPLL", "J2KR", "JLSL"])
def test_a_code_stream_of_another_size_is_refused(real_data, tmp_path, name):
    d = pydicom.dcmread(real_data / "singles" / f"CT1_{name}.dcm")
    d.Rows = 256
    d.save_as(tmp_path / "x.dcm")
    with pytest.raises(DamagedFileError, match=r"code stream holds 512 x 512 .* declares 256 x 512"):
        read_volume(tmp_path / "x.dcm")


def test_a_deflated_bomb_is_refused(tmp_path, dataset):
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "x.dcm", dataset, enforce_file_format=True)
    data = (tmp_path / "x.dcm").read_bytes()
    at = 144 + int.from_bytes(data[140:144], "little")
    (tmp_path / "x.dcm").write_bytes(data[:at] + _deflate(bytes(2**28)))
    with pytest.raises(DamagedFileError, match="larger than"):
        read_volume(tmp_path / "x.dcm")
