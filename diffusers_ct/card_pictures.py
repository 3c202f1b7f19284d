"""Pictures of a card: read as `evaluate` leaves them, written beside the card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURE_FOLDER = "pictures"


@dataclass(frozen=True, eq=False)
class CardPicture:
    """A picture of a card, such as a scan at which the model is worst: heading, what it shows, PNG."""

    title: str
    caption: str
    png: bytes


def listed(pictures: Sequence[CardPicture]) -> list[dict[str, str]]:
    """Title, caption and path of each, as the templates take them."""
    return [
        {"title": picture.title, "caption": picture.caption, "path": path}
        for picture, path in zip(pictures, _paths(pictures))
    ]


def write_card(path: Path, card: str, pictures: Sequence[CardPicture] = ()) -> list[Path]:
    """Writes a card and, in a folder beside it, its pictures; the card comes last. Returns the pictures' paths.

    Raises:
        FileExistsError: if the card or the folder exists.
    """
    if path.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(path))
    written = [path.parent / name for name in _paths(pictures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if pictures:
        try:
            (path.parent / PICTURE_FOLDER).mkdir()
        except FileExistsError as error:
            folder = str(path.parent / PICTURE_FOLDER)
            raise FileExistsError(
                17, "Pictures of another card are there: write this card to a new folder", folder
            ) from error
    for picture, file in zip(pictures, written):
        file.write_bytes(picture.png)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(card, encoding="utf-8")
    partial.replace(path)
    return written


def read_pictures(folder: Path) -> list[CardPicture]:
    """Pictures that `evaluate` left: PNG files, and pictures.json with "file", "title" and "caption" of each.

    Raises:
        ValueError: if the folder holds something else.
    """
    try:
        named = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        return [CardPicture(p["title"], p["caption"], (folder / Path(p["file"]).name).read_bytes()) for p in named]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'pictures.json'} does not list pictures as `diffusers-ct evaluate` does."
        ) from error


def _paths(pictures: Sequence[CardPicture]) -> list[str]:
    return [f"{PICTURE_FOLDER}/{number + 1:02d}.png" for number in range(len(pictures))]
