"""Who may import whom: imports point down, and there are no cycles."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusers_ct"
# part -> parts of the package that it may import
MAY_IMPORT = {
    "hounsfield": set(),
    "conditions": set(),
    "registration": set(),
    "volume": {"hounsfield", "conditions"},
    "residual": {"hounsfield"},
    "image_conditions": {"hounsfield", "residual"},
    "io": {"hounsfield", "volume", "conditions"},
    "physics": {"hounsfield", "volume", "conditions"},
    "metrics": {"hounsfield"},
    "models": {"registration"},
    "schedulers": {"registration"},
    "guidance": {"schedulers"},
    "data": {"hounsfield", "volume", "conditions", "residual", "image_conditions", "io", "physics", "hub_errors"},
    "training": {"hounsfield", "conditions", "models", "schedulers", "guidance", "residual", "image_conditions"},
    "pipelines": {
        "hounsfield",
        "volume",
        "conditions",
        "models",
        "schedulers",
        "guidance",
        "residual",
        "image_conditions",
        "registration",
        "hub_errors",
    },
    "evaluation": {
        "hounsfield",
        "volume",
        "conditions",
        "residual",
        "metrics",
        "models",
        "physics",
        "pipelines",
        "schedulers",
        "training",
        "data",
        "__init__",
    },
    "derivations": {"__init__", "io", "physics", "volume"},
    "mistakes": set(),
    "demo": {"hounsfield", "volume", "io", "physics", "pipelines", "derivations", "mistakes"},
    "card_rendering": set(),
    "deidentified_rows": {"conditions", "data"},
    "hub_errors": set(),
    "hub_audit": {"metrics"},
    "dataset_card": {"card_rendering", "hub_audit", "__init__"},
    "hub_datasets": {"dataset_card", "deidentified_rows", "hub_errors"},
    "card_pictures": set(),
    "model_card_parts": {"pipelines", "card_rendering", "card_pictures"},
    "model_card": {"pipelines", "evaluation", "card_rendering", "card_pictures", "model_card_parts", "__init__"},
    "synthesis_card": {"pipelines", "evaluation", "card_rendering", "card_pictures", "model_card_parts", "__init__"},
    "hub_models": {"pipelines", "card_pictures", "card_rendering", "model_card_parts", "hub_errors"},
    "hub": {
        "card_rendering",
        "dataset_card",
        "deidentified_rows",
        "hub_audit",
        "hub_datasets",
        "hub_errors",
        "hub_models",
        "card_pictures",
        "model_card",
        "model_card_parts",
        "synthesis_card",
    },
    "cli": {
        "__init__",
        "demo",
        "derivations",
        "mistakes",
        "hub",
        "hub_errors",
        "io",
        "data",
        "physics",
        "evaluation",
        "volume",
        "pipelines",
        "models",
        "conditions",
    },
}
# These reach a name above them from inside a function, after everything is loaded.
LATE = {("registration", "__init__"), ("pipelines", "hub_models")}


def part_of(file: Path) -> str:
    relative = file.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(file: Path) -> set[str]:
    """Parts that a file imports, by its relative imports."""
    depth = len(file.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {"__init__"}
        elif (
            isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "diffusers_ct"
        ):
            pytest.fail(f"{file}: import inside the package must be relative")
    return found


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file):
    part = part_of(file)
    assert part in MAY_IMPORT, f"{part} has no row in the table"
    late = {b for a, b in LATE if a == part}
    assert imports_of(file) - late <= MAY_IMPORT[part] | {part}


def test_the_table_has_no_cycle():
    done: set[str] = set()
    while rest := {p for p in MAY_IMPORT if p not in done}:
        ready = {p for p in rest if MAY_IMPORT[p] - {"__init__"} <= done}
        assert ready, f"cycle among {rest}"
        done |= ready


def test_only_nifti_flips_the_axes_and_only_registration_touches_private_tables():
    for file in FILES:
        text = file.read_text()
        assert ("RAS_TO_LPS" in text) == (file.name == "nifti.py")
        assert ("LOADABLE_CLASSES" in text) == (file.name == "registration.py")
