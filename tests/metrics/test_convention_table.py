"""The table of conventions: its numbers are those of the metrics, and their spread is real."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from diffusers_ct import CTVolume, write_volume
from diffusers_ct.metrics import CONVENTIONS
from diffusers_ct.metrics.convention_table import convention_rows, format_convention_table

EXAMPLE = Path(__file__).parents[2] / "examples" / "convention_table.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("convention_table_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(depth=2):
    rng = np.random.default_rng(0)
    reference = np.full((depth, 32, 32), -1000.0, np.float32)
    reference[:, 6:26, 6:26] = rng.normal(40, 30, (depth, 20, 20))
    noisy = reference + rng.normal(2, 25, reference.shape).astype(np.float32)
    return noisy.clip(-1024.0), reference  # the readers take what is below -1024 HU as padding


def test_every_published_convention_has_its_row_and_its_range():
    """The presets of the literature, restated here from their papers and code."""
    ranges = {
        "full": (-1024, 3071, 4095), "soft": (-160, 240, 400), "corediff": (-1000, 1000, None),
        "ldctbench-chest": (-1350, 150, 1500), "ldctbench-abdomen": (-150, 250, 400), "ldctbench-neuro": (0, 80, 80),
        "ldctbench-val": (-1024, 1900, 2924), "rddm": (-1024, 3072, 4096),
    }  # fmt: skip
    predicted, reference = pair()
    rows = {row.name: row for row in convention_rows(predicted, reference)}
    assert set(rows) == set(ranges) == set(CONVENTIONS)
    for name, (low, high, peak) in ranges.items():
        p, r = predicted.astype(float).clip(low, high), reference.astype(float).clip(low, high)
        row = rows[name]
        if peak is None:
            assert row.psnr_pooled_db is None
            peaks = [s.max() - s.min() for s in r]
            assert row.psnr_slice_mean_db == pytest.approx(
                np.mean([peak_signal_noise_ratio(b, a, data_range=d) for a, b, d in zip(p, r, peaks)])
            )
        else:
            assert row.psnr_pooled_db == pytest.approx(peak_signal_noise_ratio(r, p, data_range=peak))
        assert row.rmse_hu == pytest.approx(np.sqrt(np.mean((p - r) ** 2)))
        assert row.mae_hu == pytest.approx(np.mean(np.abs(p - r)))
        assert row.bias_hu == pytest.approx(np.mean(p - r))


def test_the_same_pair_lies_many_decibels_apart_and_the_table_says_so():
    rows = convention_rows(*pair())
    scores = [row.psnr_slice_mean_db for row in rows]
    assert max(scores) - min(scores) > 10
    scores += [row.psnr_pooled_db for row in rows if row.psnr_pooled_db is not None]
    text = format_convention_table(rows)
    assert text.splitlines()[-1].startswith(f"The same pair scores {min(scores):.2f} to")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == len(CONVENTIONS) + 2 and len({line.count("|") for line in table}) == 1


def test_the_example_prints_what_the_functions_say_of_files(example, tmp_path, capsys):
    predicted, reference = (CTVolume.from_array(hu, (3.0, 1.0, 1.0)) for hu in pair())
    write_volume(predicted, tmp_path / "a.mha")
    write_volume(reference, tmp_path / "b.nii.gz")
    example.main([str(tmp_path / "a.mha"), str(tmp_path / "b.nii.gz")])
    printed = capsys.readouterr().out
    assert printed.strip() == format_convention_table(convention_rows(predicted.hu, reference.hu))


def test_the_example_refuses_scans_on_other_grids(example, tmp_path):
    predicted, reference = pair()
    write_volume(CTVolume.from_array(predicted, (3.0, 1.0, 1.0)), tmp_path / "a.mha")
    write_volume(CTVolume.from_array(reference, (3.0, 1.1, 1.1)), tmp_path / "b.mha")
    write_volume(CTVolume.from_array(pair(3)[1], (3.0, 1.0, 1.0)), tmp_path / "c.mha")
    with pytest.raises(SystemExit, match="lie elsewhere"):
        example.main([str(tmp_path / "a.mha"), str(tmp_path / "b.mha")])
    with pytest.raises(SystemExit, match="shapes"):
        example.main([str(tmp_path / "a.mha"), str(tmp_path / "c.mha")])


@pytest.mark.real_data
def test_a_real_pair_spans_a_dozen_decibels(example, real_data, capsys):
    folder = real_data / "pairs" / "mayo_L506_B30f_1mm"
    example.main([str(folder / "quarter"), str(folder / "full")])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    low, high = float(last.split()[4]), float(last.split()[6])
    assert high - low > 12
