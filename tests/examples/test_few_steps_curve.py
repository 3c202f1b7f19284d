"""The curve of few steps from the command line, a distilled checkpoint beside its teacher."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from diffusers import DDIMScheduler

from diffusers_ct import CTConsistencyScheduler, CTDiffusionPipeline
from diffusers_ct.data.prepare import prepare_paired_ct
from diffusers_ct.schedulers import make_noise_scheduler
from tests.pipelines.test_pipeline_ct_diffusion import tiny_unet

PATH = Path(__file__).parents[2] / "examples" / "few_steps_curve.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("few_steps_curve", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["few_steps_curve"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["few_steps_curve"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("few")
    prepare_paired_ct(
        folder / "data", phantoms=2, dose_fractions=(0.25, 0.1), shape=(3, 64, 64), spacing_mm=(4.0, 6.0, 6.0),
        validation_fraction=0.0, test_fraction=1.0,
    )  # fmt: skip
    config = make_noise_scheduler().config
    samplers = {
        "model": DDIMScheduler.from_config(config),
        "distilled": CTConsistencyScheduler.from_config(config, distilled_timesteps=(998,)),
    }
    for name, sampler in samplers.items():
        CTDiffusionPipeline(tiny_unet(), sampler).save_pretrained(folder / name)
    return [
        "--model", str(folder / "model"), "--distilled", str(folder / "distilled"), "--dataset", str(folder / "data"),
        "--steps", "1", "2", "--samples", "2", "--slices", "1", "--texture_slices", "0",
    ]  # fmt: skip


def test_table_report_and_result_hold_every_sampler(example, arguments, tmp_path, capsys):
    example.main([*arguments, "--output_dir", str(tmp_path), "--dose", "0.25", "--reference", "full_dose"])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    rows = result["studies"]["few_steps"]
    asked = {(name, steps) for name in ("DDIM", "DPM-Solver++", "UniPC") for steps in (1, 2)} | {("distilled", 1)}
    assert {(row["method"], row["steps"]) for row in rows} == asked and {row["group"] for row in rows} == {"dose 25 %"}
    assert all(row["n_patients"] == 2 for row in rows) and result["facts"]["reference"] == "normal dose"
    assert (tmp_path / "few_steps.md").read_text() in capsys.readouterr().out
    assert "Few steps: quality for time" in (tmp_path / "report.html").read_text()


def test_a_dose_that_is_not_there_is_refused(example, arguments, tmp_path):
    with pytest.raises(SystemExit, match=r"no scan of these patients at --dose 0\.5"):
        example.main([*arguments, "--output_dir", str(tmp_path), "--dose", "0.5"])
