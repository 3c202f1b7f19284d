"""Nothing that a folder brings is run or unpickled, and nothing that is saved says where it was loaded from."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from diffusers_ct import CTDiffusionPipeline, NoiseAwareClassifier, UNet3DCTModel
from tests.pipelines.test_optional_components import Bomb, pipeline
from tests.test_hub import pipeline as restorer

INDEX = "model_index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    restorer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def bomb(path: Path, mark: Path) -> None:
    """A pickle that makes the file `mark` when it is loaded."""
    path.write_bytes(pickle.dumps(Bomb(str(mark))))


def change_index(folder: Path, **change: object) -> None:
    index = json.loads((folder / INDEX).read_text()) | change
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "asked", [{"trust_remote_code": True}, {"custom_pipeline": "user/code"}, {"use_safetensors": False}], ids=str
)
def test_code_and_pickles_are_not_to_be_had_by_asking(folder, asked):
    with pytest.raises(ValueError, match=f"`{next(iter(asked))}`"):
        CTDiffusionPipeline.from_pretrained(folder, **asked)
    with pytest.raises(ValueError, match=f"`{next(iter(asked))}`"):
        CTDiffusionPipeline.download("user/model", **asked)
    CTDiffusionPipeline.from_pretrained(folder, trust_remote_code=False, custom_pipeline=None, use_safetensors=None)


def test_a_pickle_beside_the_safetensors_is_not_opened(folder, tmp_path):
    mark = tmp_path / "exploded"
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.pt", "optimizer.pkl"):
        bomb(folder / "unet" / name, mark)
        bomb(folder / name, mark)
    CTDiffusionPipeline.from_pretrained(folder)
    UNet3DCTModel.from_pretrained(folder / "unet")
    assert not mark.exists()
    pickle.loads((folder / "unet" / "optimizer.pkl").read_bytes()).close()
    assert mark.exists(), "the bomb works"


def test_pickled_weights_alone_are_refused_in_a_sentence_by_pipelines_and_networks(folder, tmp_path):
    mark = tmp_path / "exploded"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    bomb(weights.with_suffix(".bin"), mark)
    with pytest.raises(ValueError, match=r"has no safetensors .* a pickle can run code\. Ask its author"):
        CTDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(OSError, match="safetensors"):
        UNet3DCTModel.from_pretrained(folder / "unet")
    for network in (UNet3DCTModel, NoiseAwareClassifier):
        with pytest.raises(ValueError, match="from safetensors alone"):
            network.from_pretrained(folder / "unet", use_safetensors=False)
    assert not mark.exists()


CODE = "open({!r}, 'w').close()\nclass UNet3DCTModel:\n    pass\nclass Evil(UNet3DCTModel):\n    pass\n"


@pytest.mark.parametrize(
    ("change", "file", "says"),
    [
        ({}, "unet/diffusers_ct.py", "brings code for its unet (unet/diffusers_ct.py)"),
        ({"unet": ["evil", "Evil"]}, "unet/evil.py", "asks for evil.Evil as its unet"),
        ({"unet": ["antigravity", "Evil"]}, "README.md", "asks for antigravity.Evil as its unet"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "README.md", "asks for transformers.AutoModel"),
        ({"unet": ["diffusers_ct"]}, "README.md", "asks for None.None as its unet"),
        ({"_class_name": ["pipeline", "Evil"]}, "pipeline.py", "a pipeline class of its own"),
    ],
)
def test_code_of_a_folder_is_refused_in_a_sentence_and_not_run(folder, tmp_path, change, file, says):
    mark = tmp_path / "exploded"
    (folder / file).write_text(CODE.format(str(mark)))
    change_index(folder, **change)
    with pytest.raises(ValueError) as caught:
        CTDiffusionPipeline.from_pretrained(folder)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_part_that_the_caller_brings_is_not_looked_at(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    unet = restorer().unet
    assert CTDiffusionPipeline.from_pretrained(folder, unet=unet).unet is unet


@pytest.mark.parametrize(
    ("text", "says"), [("{", "no JSON"), ("[]", "a pipeline class of its own"), (None, "it has no model_index")]
)
def test_what_is_no_pipeline_is_told(folder, text, says):
    (folder / INDEX).unlink()
    if text is not None:
        (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match=says):
        CTDiffusionPipeline.from_pretrained(folder)


def test_no_file_that_is_saved_says_where_it_was_loaded_from(tmp_path):
    pipeline().save_pretrained(tmp_path / "secret_place")
    loaded = CTDiffusionPipeline.from_pretrained(tmp_path / "secret_place")
    assert "secret_place" in str(loaded.name_or_path)
    loaded.save_pretrained(tmp_path / "again")
    loaded.unet.save_pretrained(tmp_path / "again" / "alone")
    loaded.condition_encoder.save_config(tmp_path / "again" / "config")
    files = [file for file in (tmp_path / "again").rglob("*") if file.is_file()]
    assert len({file.parent.name for file in files}) >= 8  # every component, the text encoder and its tokenizer too
    for file in files:
        assert b"secret_place" not in file.read_bytes(), file
    again = CTDiffusionPipeline.from_pretrained(tmp_path / "again")
    for one, two in zip(loaded.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one, two)


def test_saving_makes_no_pickles_and_pushes_with_no_empty_card(tmp_path):
    with pytest.raises(ValueError, match="`safe_serialization=False`"):
        restorer().save_pretrained(tmp_path / "a", safe_serialization=False)
    with pytest.raises(ValueError, match="pushed with its card"):
        restorer().save_pretrained(tmp_path / "a", push_to_hub=True)
    assert not (tmp_path / "a").exists()
