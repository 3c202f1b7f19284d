"""Every released checkpoint in the repository: small, loadable without a network, with the card of its own weights, and good."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from diffusers_ct import CTDiffusionPipeline, CTVolume, make_phantom, simulate_low_dose
from diffusers_ct.cli.checkpoints import fingerprint
from diffusers_ct.model_card_parts import check_model_card

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[1] / "model_cards").glob("*/model_index.json"))


def test_there_is_one():
    assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_it_is_small_and_has_its_own_card(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10e6
    for weights in folder.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(weights).values())
    card = (folder / "README.md").read_text()
    check_model_card(card, f"diffusers-ct/{folder.name}", folder=folder)
    assert str(fingerprint(folder)) in card


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_it_restores_a_phantom_that_it_was_not_trained_on(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = CTDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    spacing_mm = (3.0, 1.0, 1.0)
    truth = make_phantom(seed=31_337, region="abdomen", shape=(4, 384, 384), spacing_mm=spacing_mm).volume
    low_hu = simulate_low_dose(
        truth.hu, spacing_mm=spacing_mm, dose_fraction=0.1, seed=0, source_noise="noise_free", slice_thickness_mm=3.0
    )
    restored_hu = pipe(CTVolume.from_array(low_hu, spacing_mm, truth.conditions), output_type="np").volumes
    body = truth.hu > -500
    before, after = (np.mean((image - truth.hu)[body] ** 2) for image in (low_hu, restored_hu))
    assert 10 * np.log10(before / after) > 4.0  # 6 dB on average over the phantoms of its card
    assert abs(np.mean((restored_hu - truth.hu)[body])) < 1.0
