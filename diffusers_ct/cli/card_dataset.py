"""`diffusers-ct card-dataset`: a prepared dataset in, its card out."""

import json
from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """
Renders the card of a dataset made by `diffusers-ct prepare` from its rows: splits, patients, scanners, kernels, doses, limits.

    diffusers-ct card-dataset data/phantoms --repo user/phantoms --licence apache-2.0 --description "24 drawn phantoms."
    --output outputs/phantoms_card/README.md

    diffusers-ct push data/phantoms user/phantoms --card outputs/phantoms_card/README.md

Read it before the push, which refuses a card that lacks something or is of other rows.
"""


def card_dataset(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder made by `diffusers-ct prepare`.")],
    output: Annotated[Path, typer.Option(help="New Markdown file.")],
    repo: Annotated[str, typer.Option(help="Repository that the dataset is or will be in: user/name.")],
    licence: Annotated[str, typer.Option(help="Of the data, as the Hub spells it, such as cc-by-4.0.")] = "",
    description: Annotated[str, typer.Option(help="What they are, a sentence.")] = "",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A known limit, a sentence; repeatable. Those that follow from how it was made are told anyway."
        ),
    ] = None,
    citation: Annotated[str, typer.Option(help="Of where the data come from, such as a DOI.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    if not dataset.is_dir():
        raise FileNotFoundError(2, "There is no folder at this path", str(dataset))
    if output.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(output))

    from ..hub import render_dataset_card, write_card
    from .card import open_dataset

    text = render_dataset_card(
        open_dataset(str(dataset), None), repo_id=repo, licence=licence, description=description, limits=limit or (),
        citation=citation,
    )  # fmt: skip
    write_card(output, text)
    typer.echo(json.dumps({"card": str(output)}) if as_json else f"card: {output}")


card_dataset.__doc__ = _EXAMPLES
