"""`diffusers-ct push`: a model with its card, or a prepared dataset, to the Hub."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_EXAMPLES = """
Pushes the pipeline of a folder with its card, or a dataset made by `diffusers-ct prepare`, in one commit.

    diffusers-ct push outputs/model/pipeline user/model --card outputs/card/README.md --variant fp16

    diffusers-ct push data/phantoms user/phantoms --licence apache-2.0 --description "24 drawn phantoms." --private

A dataset's card is rendered from that, or is one of `diffusers-ct card-dataset`, given as --card. Log in before with `hf auth login`, or set HF_TOKEN. A card that lacks something required is refused, and so are rows that
were not de-identified. If it is interrupted, nothing half-written is left on the Hub: the same command sends what is missing.
"""


def push(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL_OR_DATASET", help="Folder of a pipeline, or one made by `prepare`.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hub; made if it is not there.")],
    card: Annotated[
        Path | None, typer.Option(help="Markdown file of `card` (with its pictures beside it) or `card-dataset`.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of a dataset without --card, as the Hub spells it.")] = "",
    description: Annotated[str, typer.Option(help="Of a dataset without --card, a sentence.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if it is not there.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="fp16: of a model, also weights in half precision (half the download).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    if not source.is_dir():
        raise FileNotFoundError(2, "There is no folder at this path", str(source))
    is_model, is_dataset = ((source / name).is_file() for name in ("model_index.json", "manifest.jsonl"))
    typed = {"--licence": licence, "--description": description}
    given = ({"--variant": variant} | (typed if card else {})) if is_dataset else typed
    if not (is_model or is_dataset):
        raise ValueError(f"{source} holds no pipeline (model_index.json) and no finished dataset (manifest.jsonl).")
    if used := [name for name, value in given.items() if value]:
        kind = "model" if is_model else "dataset with a card" if card else "dataset"
        raise ValueError(f"{source} is a {kind}: leave out {', '.join(used)}.")
    if is_model and card is None:
        raise ValueError("A model is pushed with its card: render one with `diffusers-ct card` and give it as --card.")

    from huggingface_hub import get_token

    from ..hub import push_dataset, push_model

    if get_token() is None:
        raise ValueError("You are not logged in to the Hub: `hf auth login`, or set HF_TOKEN.")
    if is_model:
        from diffusers.utils import logging

        logging.disable_progress_bar()
        assert card is not None
        address = push_model(source, repo, card=card, private=private, revision=revision, variant=variant)
    else:
        from .card import open_dataset

        rows = open_dataset(str(source), None)
        told: dict[str, Any] = {"card": card} if card else {"licence": licence, "description": description}
        address = push_dataset(rows, repo, **told, private=private, revision=revision)
    if as_json:
        typer.echo(json.dumps({"kind": "model" if is_model else "dataset", "repo": repo, "commit": address}))
    else:
        typer.echo(f"pushed: {address}")


push.__doc__ = _EXAMPLES
