"""What a card says of patients and scans: who they were, how they were made, and whether weights give them away."""

import json
from collections import Counter
from typing import Any

import numpy as np
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


def acquisition_of(rows: Dataset) -> list[tuple[str, str]]:
    """(what, how much) of the scans of prepared rows, for a card: kernels, tube voltage, slices, pixels and noise.

    Args:
        rows: as `population_of`, with "spacing_mm" and "noise_hu".
    """
    facts = rows.select_columns(["conditions", "spacing_mm", "noise_hu"])[:]
    known = [json.loads(text) for text in facts["conditions"]]

    def of(name: str) -> list[Any]:
        return [scan[name] for scan in known if scan.get(name) is not None]

    def spread(values: list[float], unit: str, total: int) -> str:
        unknown = f"unknown {total - len(values)}" if len(values) < total else ""
        ends = sorted({f"{end:.4g}" for end in (min(values), max(values))}, key=float) if values else []
        return ", ".join(part for part in (f"{' to '.join(ends)} {unit}" if ends else "", unknown) if part)

    kernels = Counter(of("kernel"))
    kernels["unknown"] = len(known) - kernels.total()
    spacings = np.array(facts["spacing_mm"], dtype=float)
    noise = [level for scan in facts["noise_hu"] for level in scan]
    return [
        ("kernel", ", ".join(f"{name} {count}" for name, count in sorted(kernels.items()) if count)),
        ("tube voltage", spread(of("kvp"), "kV", len(known))),
        ("slice thickness", spread(of("slice_thickness_mm"), "mm", len(known))),
        ("slice spacing", spread(list(spacings[:, 0]), "mm", len(spacings))),
        ("pixel spacing", spread(list(spacings[:, 1:].ravel()), "mm", spacings[:, 1:].size)),
        ("noise of a slice (`low` of a pair)", spread(noise, "HU (SD, measured)", len(noise))),
    ]
