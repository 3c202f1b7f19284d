"""What a card says of the training patients: who they were, and whether the weights give them away."""

import json
from collections import Counter
from typing import Any

from datasets import Dataset

from .metrics.memorisation import Memorisation


def audit_of(found: Memorisation) -> dict[str, Any]:
    """The numbers of a memorisation check that a card shows, as plain JSON values."""
    return {
        "flagged": int(found.flagged.sum()),
        "volumes": len(found.flagged),
        "false_positive_rate": float(found.false_positive_rate),
        "p_value": float(found.p_value),
        "held_out_patients": len(found.held_out_distances),
        "extractor": found.extractor,
    }


def population_of(rows: Dataset) -> list[tuple[str, str]]:
    """(what, how many) of the patients and scanners of prepared rows, for a card; patients without a fact are counted.

    Args:
        rows: of one split, as `load_paired_ct` and `load_unpaired_ct` open them.
    """
    facts = rows.select_columns(["patient_key", "conditions"])[:]
    patients: dict[str, dict[str, Any]] = {}
    for key, text in zip(facts["patient_key"], facts["conditions"]):
        known = {name: value for name, value in json.loads(text).items() if value is not None}
        patients[key] = known | patients.get(key, {})  # a patient's first scan speaks for the patient

    def of(name: str) -> list[Any]:
        return [scan[name] for scan in patients.values() if name in scan]

    def counted(values: list[Any]) -> str:
        shown = [f"{value} {count}" for value, count in sorted(Counter(values).items())]
        unknown = len(patients) - len(values)
        return ", ".join([*shown, *([f"unknown {unknown}"] if unknown else [])])

    ages = sorted(of("age_years"))
    spread = f"{ages[0]:.0f} to {ages[-1]:.0f} years, median {ages[len(ages) // 2]:.0f}" if ages else ""
    unknown = f"unknown {len(patients) - len(ages)}" if len(ages) < len(patients) else ""
    return [
        ("patients", str(len(patients))),
        ("age", ", ".join(part for part in (spread, unknown) if part)),
        ("sex", counted(of("sex"))),
        ("manufacturer", counted(of("manufacturer"))),
        ("body part", counted(of("body_part"))),
    ]
