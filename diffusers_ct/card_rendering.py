"""Cards from templates, as the Hub reads them: Markdown below metadata in YAML; and taking such a card apart."""

import re
from collections.abc import Mapping
from typing import Any

import jinja2
import yaml


class CardError(ValueError):
    """A card lacks what a reader needs to trust it."""


def render_card(template: str, **values: Any) -> str:
    """The text below the metadata."""
    loader = jinja2.PackageLoader("diffusers_ct", "card_templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.get_template(template).render(**values)


def with_metadata(metadata: Mapping[str, Any], body: str) -> str:
    """The whole card."""
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n\n{body.rstrip()}\n"


def take_apart(card: str, *, command: str) -> tuple[dict[str, Any], str, dict[str, str]]:
    """Metadata, the text below, and the text of each of its sections (## ...) by name.

    Args:
        card: the whole.
        command: that renders such a card, for the message.

    Raises:
        CardError: if it has no metadata.
    """
    parts = re.match(r"---\n(.*?\n)---\n(.*)", card, flags=re.DOTALL)
    if parts is None:
        raise CardError(f"The card lacks its metadata: render it with `{command}`.")
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise CardError(f"The metadata of the card is no YAML: render it with `{command}`.") from error
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", parts[2], flags=re.DOTALL | re.MULTILINE))
    return metadata if isinstance(metadata, dict) else {}, parts[2], sections


def lacking(
    metadata: Mapping[str, Any], needed: tuple[str, ...], texts: Mapping[str, str], names: tuple[str, ...]
) -> list[str]:
    """What a card lacks of the metadata and sections that it needs, in words."""
    missing = [f"`{name}`" for name in needed if not metadata.get(name)]
    return missing + [f'the section "{name}"' for name in names if not texts.get(name, "").strip()]
