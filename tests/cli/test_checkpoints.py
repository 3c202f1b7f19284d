"""Which weights made an image: the commit of a Hub repository, or a hash of a folder's weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_ct import CTDiffusionPipeline, UNet3DCTModel
from diffusers_ct.cli.checkpoints import fingerprint, load_pipeline, model_name
from diffusers_ct.schedulers import make_noise_scheduler
from tests.hub_server import TOKEN, LocalHub

SCRIPT = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("user/model")
api.upload_folder(repo_id="user/model", folder_path=sys.argv[1])
from diffusers_ct.cli.checkpoints import load_pipeline, model_name
for revision in (None, "main"):
    pipeline, weights = load_pipeline("user/model", revision)
    print(type(pipeline).__name__, weights, model_name("user/model"))
"""


def save(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    unet = UNet3DCTModel(
        block_out_channels=(8,), layers_per_block=1, downsample_strides=(), refine_channels=4, norm_num_groups=4
    )
    CTDiffusionPipeline(unet, make_noise_scheduler()).save_pretrained(folder)
    return folder


def test_a_folder_is_named_by_its_weights_alone(tmp_path):
    a, b, c = save(tmp_path / "a"), save(tmp_path / "b"), save(tmp_path / "c", seed=1)
    assert load_pipeline(str(a), None)[1] == fingerprint(a) == fingerprint(b) != fingerprint(c)
    assert fingerprint(a).startswith("sha256:") and len(fingerprint(a)) == 19
    assert fingerprint(tmp_path) is None
    (a / "README.md").write_text("words")
    assert fingerprint(a) == fingerprint(b)


def test_names_hold_no_path_of_the_machine(tmp_path, monkeypatch):
    folder = save(tmp_path / "mine")
    monkeypatch.chdir(folder)
    assert model_name(str(folder)) == model_name(".") == model_name(f"{folder}/") == "mine"
    assert model_name("user/model") == "user/model"


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", tmp_path / "nowhere", "user/nowhere"):
        with pytest.raises(ValueError, match=rf"^No pipeline could be loaded from {name}: ") as error:
            load_pipeline(str(name), None)
        assert "\n" not in str(error.value)


def test_a_repository_is_named_by_its_commit(tmp_path):
    with LocalHub() as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(save(tmp_path / "model"))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
        assert done.returncode == 0, done.stderr
        head = hub.repos["models", "user/model"].head
    assert done.stdout.splitlines() == [f"CTDiffusionPipeline {head} user/model"] * 2
