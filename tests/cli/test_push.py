"""`diffusers-ct push` to a Hub on this machine, and loading from it in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_ct import CTDiffusionPipeline
from diffusers_ct.data import prepare_paired_ct
from diffusers_ct.hub import CardPicture, render_model_card, write_card
from tests.cli.hub_commands import environment, run_commands
from tests.hub_server import LocalHub
from tests.test_hub import CARD, benchmark, pipeline
from tests.test_model_card import PNG

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A model, its card with a picture, cards that lack something, and a dataset."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    pipe = pipeline()
    with torch.no_grad():
        for p in pipe.unet.parameters():
            p.add_(0.01)
    pipe.save_pretrained(folder / "saved")
    CTDiffusionPipeline.from_pretrained(folder / "saved").save_pretrained(folder / "model")  # knows where it came from
    (folder / "model" / "notes.txt").write_text("private")
    (folder / "model" / "unet" / "old.bin").write_bytes(b"pickle")
    picture = CardPicture("dose 25 %, scan 4", "Gain 0.1 dB.", PNG)
    for name in ("model", "half", "branch", "cut"):
        card = render_model_card(pipe, benchmark=benchmark(), pictures=[picture], **{**CARD, "repo_id": f"user/{name}"})
        write_card(folder / name / "card" / "README.md", card, [picture])
    (folder / "limitless.md").write_text(card.replace("## Limits", "## Praise").replace("user/cut", "user/model"))
    prepare_paired_ct(
        folder / "data", phantoms=3, dose_fractions=(0.25,), shape=(2, 64, 64), spacing_mm=(3, 6, 6),
        validation_fraction=0, test_fraction=0,
    )  # fmt: skip
    return folder


@pytest.fixture
def hub():
    with LocalHub() as running:
        yield running


def push(made: Path, name: str, *options: object) -> tuple[object, ...]:
    return ("push", made / "model", f"user/{name}", "--card", made / name / "card" / "README.md", *options)


LOAD = """
import sys, numpy as np, torch
from diffusers_ct import CTDiffusionPipeline, load_paired_ct
full, half = CTDiffusionPipeline.from_pretrained("user/half"), CTDiffusionPipeline.from_pretrained(
    "user/half", variant="fp16", dtype=torch.float16)
local = CTDiffusionPipeline.from_pretrained(sys.argv[1])
assert half.unet.dtype == torch.float16 and full.unet.dtype == torch.float32
for a, b, c in zip(full.unet.parameters(), half.unet.parameters(), local.unet.parameters()):
    assert torch.equal(a, c) and torch.equal(b, c.half())
hu = np.random.default_rng(0).normal(0, 50, (2, 16, 16)).astype("float32")
out = [p(hu, spacing_mm=(1, 1, 1), output_type="np", generator=torch.Generator().manual_seed(0)).volumes
       for p in (full, half, local)]
assert np.array_equal(out[0], out[2]), "the very weights"
assert 0 < np.abs(out[1] - out[0]).max() < 0.01 * np.abs(out[0] - hu).max(), "half precision, nearly the same image"
branch = CTDiffusionPipeline.from_pretrained("user/branch", revision="v1")
assert torch.equal(next(branch.unet.parameters()), next(local.unet.parameters()))
rows = load_paired_ct("user/data", split="train")
assert rows["checksum"] == load_paired_ct(sys.argv[2], split="train")["checksum"] and len(rows) == 3
"""


def test_models_with_variant_and_branch_and_a_dataset_come_back_in_a_fresh_process(hub, made, tmp_path):
    env = environment(hub.url, tmp_path / "pushing")
    half, branch, data = run_commands(
        [
            push(made, "half", "--variant", "fp16", "--json"),
            push(made, "branch", "--revision", "v1"),
            ("push", made / "data", "user/data", "--licence", "apache-2.0", "--description", "Drawn.", "--private"),
        ],
        env,
    )
    for done in (half, branch, data):
        assert done.status == 0, done.stderr
    repo = hub.repos["models", "user/half"]
    told = json.loads(half.stdout)
    assert told == {"kind": "model", "repo": "user/half", "commit": f"{hub.url}/user/half/commit/{repo.head}"}
    files = repo.commits[repo.head]
    assert {WEIGHTS, HALF, "README.md", "pictures/01.png", "model_index.json"} < set(files)
    assert 0.4 < len(files[HALF]) / len(files[WEIGHTS]) < 0.75
    assert files["pictures/01.png"] == PNG
    assert not [name for name in files if name.endswith((".bin", ".txt", ".py", ".pkl"))]
    assert not [name for name, content in files.items() if str(made).encode() in content], "a path of this machine"
    assert len(repo.commits) == 2  # an empty one, and all at once
    other = hub.repos["models", "user/branch"]
    assert other.commits[other.head] == {} and WEIGHTS in other.commits[other.branches["v1"]]
    assert hub.repos["datasets", "user/data"].private

    env = environment(hub.url, tmp_path / "loading")
    command = [sys.executable, "-c", LOAD, str(made / "model"), str(made / "data")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_lacks_something_is_refused_by_name_and_nothing_is_sent(hub, made, tmp_path):
    card = made / "model" / "card" / "README.md"
    cases = {
        "--card": ("push", made / "model", "user/model"),
        'section "Limits"': ("push", made / "model", "user/model", "--card", made / "limitless.md"),
        "not of user/another": ("push", made / "model", "user/another", "--card", card),
        "--variant must be fp16": ("push", made / "model", "user/model", "--card", card, "--variant", "fp8"),
        "leave out --description": ("push", made / "model", "user/model", "--card", card, "--description", "x"),
        "dataset card lacks `pretty_name`": ("push", made / "data", "user/data", "--card", card),
        "leave out --licence": ("push", made / "data", "user/data", "--card", card, "--licence", "cc0-1.0"),
        "leave out --variant": ("push", made / "data", "user/data", "--card", card, "--variant", "fp16"),
        "would lack licence": ("push", made / "data", "user/data", "--description", "x"),
        "no pipeline": ("push", made, "user/model"),
        "no folder": ("push", made / "nothing", "user/model"),
    }
    for says, done in zip(cases, run_commands(list(cases.values()), environment(hub.url, tmp_path))):
        assert says in done.error
    assert hub.requests == []


def test_who_is_not_known_is_told_so_without_showing_a_token(hub, made, tmp_path):
    (nobody,) = run_commands([push(made, "model")], environment(hub.url, tmp_path, HF_TOKEN=None))
    assert nobody.error.startswith("You are not logged in") and hub.requests == []
    secret = "hf_another_secret"
    (stranger,) = run_commands([push(made, "model")], environment(hub.url, tmp_path, HF_TOKEN=secret))
    assert stranger.error.startswith("The Hub does not accept your token")
    assert secret not in stranger.stdout + stranger.stderr and hub.repos == {}


def test_an_upload_that_is_cut_once_ends_well(hub, made, tmp_path):
    hub.uploads_to_cut = 1
    (done,) = run_commands([push(made, "cut")], environment(hub.url, tmp_path))
    assert done.status == 0, done.stderr
    assert sum(request.startswith("CUT") for request in hub.requests) == 1
    assert WEIGHTS in hub.repos["models", "user/cut"].commits[hub.repos["models", "user/cut"].head]
