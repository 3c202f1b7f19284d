"""Pushing a restoration model: its weights as safetensors, its card and the card's pictures, in one commit."""

import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi

from .card_pictures import PICTURE_FOLDER
from .card_rendering import CardError
from .hub_errors import hub_errors_in_words
from .model_card_parts import check_model_card
from .pipelines import CTDiffusionPipeline

_PARTS = ("unet", "scheduler", "condition_encoder", "classifier", "text_encoder", "tokenizer")
VARIANTS = {"fp16": torch.float16}


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    card: str | Path,
    private: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    max_shard_size: str | int | None = None,
    commit_message: str = "Add CTDiffusionPipeline",
) -> str:
    """Pushes the pipeline of a folder and its card; returns the commit's address.

    The pipeline is loaded and saved anew, so that nothing else that lies in the folder is sent: no pickle, no code, no
    path of this machine. Weights and pictures of an earlier push are replaced. Its bytes are the same each time, so after an interruption the same call sends what is missing.

    Args:
        folder: of a pipeline.
        repo_id: "user/name"; made if it is not there.
        card: Markdown file with its pictures beside it, from `render_model_card` and `write_card`, or its text.
        private: of a repository that is made new.
        revision: branch to push to, made if it is not there.
        variant: "fp16" adds weights in half precision for `from_pretrained(variant="fp16", dtype=torch.float16)`.
        token: of the Hub; None takes the one logged in with.
        max_shard_size: of a file of weights, such as "5GB"; None takes diffusers' own.
        commit_message: of the commit.

    Raises:
        CardError: if the card lacks something, or is that of another repository.
        HubError: if the Hub does not take it.
        ValueError: for another variant, or weights that half precision does not hold.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"`variant` must be {' or '.join(VARIANTS)}, got {variant!r}.")
    beside = card.parent if isinstance(card, Path) else None
    text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
    pictures = check_model_card(text, repo_id, folder=beside)
    with tempfile.TemporaryDirectory() as made:
        _save(Path(folder), Path(made), variant, max_shard_size)
        for path in pictures:
            assert beside is not None
            (Path(made) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(made) / path).write_bytes((beside / path).read_bytes())
        (Path(made) / "README.md").write_text(text, encoding="utf-8")
        api = HfApi(token=token)
        with hub_errors_in_words(repo_id, revision=revision, token=token):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=made, revision=revision, commit_message=commit_message,
                # weights of an earlier push, as a variant or in shards, would be loaded for these
                delete_patterns=[f"{part}/*" for part in (*_PARTS, PICTURE_FOLDER)],
            )  # fmt: skip
        return str(commit)


def _save(folder: Path, made: Path, variant: str | None, max_shard_size: str | int | None) -> None:
    """The weights as they are, and beside them those of the variant."""
    pipeline = CTDiffusionPipeline.from_pretrained(folder)
    if pipeline.contract is None:
        raise CardError(f"{folder.name} holds a pipeline without a contract: nobody could tell what it was trained on.")
    pipeline.save_pretrained(made, max_shard_size=max_shard_size)
    if variant is None:
        return
    small = CTDiffusionPipeline.from_pretrained(folder, dtype=VARIANTS[variant])
    for name, part in small.components.items():
        if isinstance(part, torch.nn.Module) and not all(p.isfinite().all() for p in part.parameters()):
            raise ValueError(f"Weights of {name} are too large for {variant}: push without `variant`.")
    # in a folder of its own: diffusers takes shards of a variant for those of an earlier save, and deletes them
    with tempfile.TemporaryDirectory() as halves:
        small.save_pretrained(halves, variant=variant, max_shard_size=max_shard_size)
        for file in Path(halves).rglob(f"*{variant}*"):
            shutil.move(file, made / file.relative_to(halves))
