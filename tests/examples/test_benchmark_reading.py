"""The benchmark of reading: one row for each encoding, of series whose reading is right."""

import importlib.util
from pathlib import Path

import gdcm
import numpy as np
import pytest

from diffusers_ct import read_volume
from tests.io.synthetic import hu_of, write_series

FILE = Path(__file__).parents[2] / "examples" / "benchmark_reading.py"
spec = importlib.util.spec_from_file_location("benchmark_reading", FILE)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

SYNTAXES = {
    "uncompressed": gdcm.TransferSyntax.ExplicitVRLittleEndian,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "RLE": gdcm.TransferSyntax.RLELossless,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One synthetic slice in each encoding, named as the samples that the benchmark expects."""
    folder = tmp_path_factory.mktemp("singles")
    plain = write_series(folder / "plain", hu_of((1, 32, 24)))[0]
    for name, syntax in SYNTAXES.items():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(folder / benchmark.ENCODINGS[name]))
        assert writer.Write()
    return folder


def test_every_encoding_is_measured(data, capsys):
    benchmark.main([str(data), "--slices", "3"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "encoding" and [row[:14].strip() for row in rows] == list(benchmark.ENCODINGS)
    for row in rows:
        numbers = [float(word) for word in row[14:].split()]
        assert len(numbers) == 5 and min(numbers[:4]) > 0.0
    with pytest.raises(SystemExit, match="must be positive"):
        benchmark.main([str(data), "--slices", "0"])


@pytest.mark.parametrize("name", list(SYNTAXES))
def test_both_readers_read_the_same_series(data, tmp_path, name):
    benchmark.make_series(data / benchmark.ENCODINGS[name], tmp_path / "series", 3)
    volume = read_volume(tmp_path / "series")
    assert volume.shape == (3, 32, 24) and volume.spacing_mm[0] == pytest.approx(5.0)
    np.testing.assert_array_equal(volume.hu, np.repeat(hu_of((1, 32, 24)), 3, axis=0))
    np.testing.assert_array_equal(benchmark.plain_loop(tmp_path / "series"), volume.hu)


def test_what_reading_adds_to_the_volume_is_told():
    held = []
    assert benchmark.peak_beyond_volume(lambda: held.append(np.ones(2**22, np.uint8)), 2**21) == pytest.approx(
        2.0, abs=0.1
    )
