"""Cards from templates: Markdown below metadata in YAML, as the Hub reads them."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2


class CardError(ValueError):
    """A card lacks what a reader needs to trust it."""


def render_card(template: str, **values: Any) -> str:
    source = files("diffusers_ct").joinpath("card_templates", template).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=False, autoescape=False)
    return environment.from_string(source).render(**values)


def with_metadata(metadata: Mapping[str, Any], body: str) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n\n{body}"
