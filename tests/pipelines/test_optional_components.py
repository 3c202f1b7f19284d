"""`CTDiffusionPipeline` is saved and loaded with and without each optional component, from disk and from the Hub."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from diffusers_ct import (
    CheckpointContract,
    ConditionEncoder,
    CTAdaptiveDDIMScheduler,
    CTDiffusionPipeline,
    NoiseAwareClassifier,
    ScanConditions,
)
from diffusers_ct.schedulers import make_noise_scheduler
from tests.hub_server import TOKEN, LocalHub, Repo
from tests.pipelines.test_pipeline_ct_diffusion import seeded, tiny_unet

ROOT = Path(__file__).parents[2]
SHAPE = (2, 16, 16)
WORDS = ["[UNK]", "[PAD]", "a", "in", "the", "right", "left", "lung", "nodule", "clear"]
PARTS = ("condition_encoder", "classifier", "text", "images", "adaptive")
SUBSETS = [(), *((part,) for part in PARTS if part != "text"), ("condition_encoder", "text"), PARTS]

ROUNDING_HU = 0.05  # CPU kernels round by the alignment of the weights in memory, which loading changes


def tiny_text_encoder():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    )
    return BertModel(config).eval(), fast


def pipeline(parts=PARTS) -> CTDiffusionPipeline:
    """Synthesis with some of the optional parts; every weight is random, so that each part matters."""
    torch.manual_seed(3)
    conditional = "condition_encoder" in parts
    names = ["body_part", "findings", *(["text"] if "text" in parts else [])]
    components = {}
    if conditional:
        components["condition_encoder"] = ConditionEncoder(
            names, body_parts=["HEAD", "THORAX"], findings=["cyst", "nodule"], token_dim=8, pooled_dim=5,
            text_dim=8 if "text" in parts else 0,
        ).eval()  # fmt: skip
    if "text" in parts:
        components["text_encoder"], components["tokenizer"] = tiny_text_encoder()
    if "classifier" in parts:
        components["classifier"] = NoiseAwareClassifier(
            findings=["nodule"], body_parts=["HEAD", "THORAX"], block_out_channels=(4, 8), downsample_strides=(1, 2, 2),
            norm_num_groups=2,
        ).eval()  # fmt: skip
    unet = tiny_unet(
        in_channels=3 if "images" in parts else 1, pooled_dim=5 if conditional else 0,
        transformer_depth=(0, 1), cross_attention_dim=8 if conditional else 0, attention_head_dim=8,
    )  # fmt: skip
    config = make_noise_scheduler().config
    scheduler = DDIMScheduler.from_config(config)
    if "adaptive" in parts:
        scheduler = CTAdaptiveDDIMScheduler.from_config(
            config, shift_conditions=["slice_spacing_mm"], shift_knot_counts=[2], shift_knots=[1.0, 4.0],
            shift_values=[-0.5, 1.5],
        )  # fmt: skip
    contract = CheckpointContract("phantoms", "Apache-2.0", target="image", volume_shape=SHAPE)
    pipe = CTDiffusionPipeline(
        unet, scheduler, contract.to_dict(), target="image", image_conditions="mri" if "images" in parts else "",
        **components,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made_by(pipe: CTDiffusionPipeline) -> np.ndarray:
    """A volume for which everything that the pipeline has is used."""
    request: dict = {}
    judged = pipe.classifier is not None
    if pipe.condition_encoder is not None or judged:
        text = "a nodule in the left lung" if pipe.text_encoder is not None else None
        request["conditions"] = ScanConditions(body_part="THORAX", findings=("nodule",), text=text)
    if pipe.condition_encoder is not None:
        request["guidance_scale"] = {"findings": 3.0, **({"text": 2.0} if pipe.text_encoder is not None else {})}
    if judged:
        request["classifier_scale"] = {"findings": 20.0, "body_part": 10.0}
    if pipe.image_kinds:
        request["images"] = {"mri": np.random.default_rng(0).random(SHAPE).astype(np.float32)}
    pipe.set_progress_bar_config(disable=True)
    out = pipe(spacing_mm=(2.0, 1.0, 1.0), num_inference_steps=3, generator=seeded(), output_type="np", **request)
    return out.volumes[0]


def assert_same_weights(pipe, other) -> None:
    for name, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for one, two in zip(
                module.state_dict().values(), other.components[name].state_dict().values(), strict=True
            ):
                assert torch.equal(one, two), name


@pytest.mark.parametrize("parts", SUBSETS, ids=["+".join(s) or "none" for s in SUBSETS])
def test_saved_and_loaded_from_disk_it_makes_the_same(parts, tmp_path):
    pipe = pipeline(parts)
    expected = made_by(pipe)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for name in ("condition_encoder", "classifier", "text_encoder", "tokenizer"):
        there = getattr(pipe, name) is not None
        assert (index[name] != [None, None]) == there and (tmp_path / name).is_dir() == there
    weights = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert weights == {".safetensors", ".json"}
    loaded = CTDiffusionPipeline.from_pretrained(tmp_path)
    assert (loaded.image_kinds, loaded.contract) == (pipe.image_kinds, pipe.contract)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert set(loaded.components) == set(pipe.components)
    assert_same_weights(loaded, pipe)
    np.testing.assert_allclose(made_by(loaded), expected, atol=ROUNDING_HU)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text()) | {"_name_or_path": ""} == index | {
        "_name_or_path": ""
    }


def test_every_part_matters():
    made = {parts: made_by(pipeline(parts)) for parts in SUBSETS}
    assert all(np.isfinite(volume).all() for volume in made.values())
    pipe = pipeline()
    whole = made_by(pipe)
    for name, module in (("condition_encoder", None), ("classifier", None), ("text_encoder", None), ("unet", None)):
        module = getattr(pipe, name)
        saved = {k: v.clone() for k, v in module.state_dict().items()}
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        assert np.abs(made_by(pipe) - whole).max() > 0.1, name
        module.load_state_dict(saved)
    np.testing.assert_array_equal(made_by(pipe), whole)


def test_parts_can_be_left_out_or_added_on_loading(tmp_path):
    pipeline().save_pretrained(tmp_path)
    pipe = CTDiffusionPipeline.from_pretrained(tmp_path, classifier=None, text_encoder=None, tokenizer=None)
    assert pipe.classifier is None and pipe.text_encoder is None and pipe.condition_encoder is not None
    with pytest.raises(ValueError, match="came without its text encoder"):
        pipe(
            spacing_mm=(2.0, 1.0, 1.0), num_inference_steps=2, conditions=ScanConditions(text="clear"),
            guidance_scale={"text": 2.0},
        )  # fmt: skip
    with pytest.raises(ValueError, match="has no classifier"):
        made_by_classifier = {"classifier_scale": 1.0, "conditions": ScanConditions(body_part="HEAD")}
        pipe(spacing_mm=(2.0, 1.0, 1.0), num_inference_steps=2, **made_by_classifier)
    pipe.save_pretrained(tmp_path / "less")
    assert not (tmp_path / "less" / "text_encoder").exists()
    bare = pipeline(("condition_encoder",))
    bare.save_pretrained(tmp_path / "bare")
    judge = pipeline().classifier
    more = CTDiffusionPipeline.from_pretrained(tmp_path / "bare", classifier=judge)
    assert more.classifier is judge and np.abs(made_by(more) - made_by(bare)).max() > 0.1


def test_from_pipe_shares_the_components():
    pipe = pipeline()
    other = CTDiffusionPipeline.from_pipe(pipe)
    assert all(other.components[name] is part for name, part in pipe.components.items())
    assert other.contract == pipe.contract and other.image_kinds == ("mri",) and other.config.target == "image"
    np.testing.assert_array_equal(made_by(other), made_by(pipe))
    without = CTDiffusionPipeline.from_pipe(pipe, classifier=None)
    assert without.classifier is None and pipe.classifier is not None


@pytest.mark.parametrize("kind", ["model", "group"])
def test_offloading_changes_nothing(kind):
    pipe = pipeline()
    expected = made_by(pipe)
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
        hooked = {name for name, part in pipe.components.items() if hasattr(part, "_hf_hook")}
        assert hooked == {"text_encoder", "condition_encoder", "unet"}  # the classifier is called by another name
    else:
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_allclose(made_by(pipe), expected, atol=ROUNDING_HU)
    np.testing.assert_allclose(made_by(pipe), expected, atol=ROUNDING_HU)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    ("folder", "weights"),
    [
        ("unet", "diffusion_pytorch_model.bin"), ("condition_encoder", "diffusion_pytorch_model.bin"),
        ("classifier", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["honest", "bomb"])
def test_loading_never_unpickles(folder, weights, kind, tmp_path):
    pipeline().save_pretrained(tmp_path / "pipe")
    safe = next((tmp_path / "pipe" / folder).glob("*.safetensors"))
    if kind == "honest":
        torch.save(load_file(safe), safe.with_name(weights))
    else:
        safe.with_name(weights).write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    safe.unlink()
    with pytest.raises((OSError, ValueError)):
        CTDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "exploded").exists()


LOAD = """
import sys, numpy as np
from diffusers_ct import CTDiffusionPipeline
for name in ("full", "bare"):
    for source in (f"user/{name}", f"{sys.argv[1]}/{name}"):
        pipe = CTDiffusionPipeline.from_pretrained(source)
        from tests.pipelines.test_optional_components import ROUNDING_HU, made_by
        assert np.abs(made_by(pipe) - np.load(f"{sys.argv[1]}/{name}.npy")).max() < ROUNDING_HU, source
        assert (pipe.classifier is None) == (pipe.tokenizer is None) == (pipe.condition_encoder is None) == (name == "bare")
        assert pipe.contract.volume_shape == (2, 16, 16)
"""


def test_a_fresh_process_loads_from_the_hub_and_from_disk(tmp_path):
    with LocalHub() as hub:
        for name, parts in (("full", PARTS), ("bare", ())):
            pipe = pipeline(parts)
            pipe.save_pretrained(tmp_path / name)
            torch.set_num_threads(1)
            np.save(tmp_path / f"{name}.npy", made_by(pipe))
            files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
            hub.repos["models", f"user/{name}"] = repo = Repo()
            repo.commit({path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files})
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert any("text_encoder" in request for request in hub.requests)
    shutil.rmtree(tmp_path / "home")
