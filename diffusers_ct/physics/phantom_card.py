"""The card of the phantoms: what is drawn, between what limits, and what nobody may conclude from it.

Everything countable in it is read from the tables that draw the phantoms, so that the card cannot say otherwise.
"""

from importlib.resources import files
from typing import get_args

import jinja2

from .phantom import PHANTOM_VERSION, REGION_MODULES, Region
from .phantom_anatomy import (
    AGE_EFFECTS,
    AGE_RANGE_YEARS,
    BASE_HU,
    CONTRAST_PHASES,
    LABEL_OF,
    ORGAN_LABELS,
    PERFUSED_HU,
    SEX_EFFECTS,
)
from .phantom_lesions import LESION_KINDS_OF_REGION, LESION_RANGES, MIN_FINDING_VOXELS, LesionRange


def render_phantom_card() -> str:
    """The card as Markdown; `model_cards/phantoms.md` is this text."""
    template = files("diffusers_ct").joinpath("card_templates", "phantom_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return environment.from_string(template).render(
        version=PHANTOM_VERSION,
        regions=[(region, _structures(region), LESION_KINDS_OF_REGION[region]) for region in get_args(Region)],
        phases=CONTRAST_PHASES,
        still=[(name, LABEL_OF.get(name, name), hu) for name, hu in BASE_HU.items()],
        perfused=[(name, LABEL_OF.get(name, name), *hu) for name, hu in PERFUSED_HU.items()],
        lesions=[(kind, *_limits(limits)) for kind, limits in LESION_RANGES.items()],
        fewest_voxels=MIN_FINDING_VOXELS,
        ages=AGE_RANGE_YEARS,
        age_effects=AGE_EFFECTS,
        sex_effects=SEX_EFFECTS,
        labels=ORGAN_LABELS,
    )


def _structures(region: str) -> str:
    """The first sentence of the region's own file, which says what is drawn."""
    first = (REGION_MODULES[region].__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return first.split(": ", 1)[1].rstrip(".")


def _limits(limits: LesionRange) -> tuple[str, str, str]:
    """Tissue, radius and HU of a kind in words."""
    low, high = limits.hu
    hu = f"{low:g} to {high:g}"
    if limits.adds:
        hu += ", relative to the tissue it lies in"
    elif limits.relative_to:
        hu += f", relative to the {limits.relative_to}"
    tissues = ", ".join(name.replace("_", " ") for name in (limits.organ, *limits.also))
    return tissues, f"{limits.radius_mm[0]:g} to {limits.radius_mm[1]:g}", hu
