"""Rows of a dataset that may be published: made by this package's preparation, and showing it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from .conditions import ScanConditions
from .data.manifest import DEIDENTIFICATION, SPLITS, TARGETS, hashed_key
from .data.unpaired_ct import DOSES

_COLUMNS = (
    "scan_key", "patient_key", "split", "dose_fraction", "low", "full", "noise_hu", "spacing_mm", "affine_lps", "target",
    "conditions", "provenance", "checksum",
)  # fmt: skip
_UNPAIRED_COLUMNS = (
    "scan_key", "patient_key", "split", "dose", "dose_fraction", "volume", "noise_hu", "spacing_mm", "affine_lps",
    "conditions", "provenance", "checksum",
)  # fmt: skip
_HASH = re.compile(r"[0-9a-f]{20}")  # of `hashed_key`
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9_]{1,40}")
_TECHNICAL = re.compile(r"[A-Za-z0-9][\w .,+:()\\-]{0,63}")
# Words of BodyPartExamined (PS3.16 annex L and what vendors write): the one text of a row that is typed at the scanner.
_BODY = re.compile(
    r"(ABDOMEN|ABD|ABDO|ADRENAL|ANKLE|AORTA|ARM|AXILLA|BACK|BLADDER|BODY|BONE|BRAIN|BREAST|BRONCHUS|CARDIAC|CAROTID|CERVIX|"
    r"CHEST|COLON|CORONARY|ARTERY|C|T|L|S|CSPINE|TSPINE|LSPINE|SSPINE|CTSPINE|TLSPINE|LSSPINE|SPINE|CERVICAL|THORACIC|LUMBAR|"
    r"SACRUM|COCCYX|EAR|ELBOW|ESOPHAGUS|EXTREMITY|EYE|FACE|FACIAL|FEMUR|FINGER|FOOT|FOREARM|GALLBLADDER|HAND|HEAD|HEART|HIP|"
    r"HUMERUS|IAC|INTESTINE|JAW|KIDNEY|KNEE|LARYNX|LEG|LIVER|LOWER|UPPER|LUNG|MANDIBLE|MAXILLA|MEDIASTINUM|NECK|NOSE|ORBIT|"
    r"PANCREAS|PAROTID|PARTIAL|PARTIALBODY|PELVIS|PELV|PHANTOM|PROSTATE|RADIUS|RENAL|RIB|SCAPULA|SHOULDER|SINUS|SKULL|SPLEEN|STERNUM|"
    r"STOMACH|THIGH|THORAX|THYROID|TIBIA|TOE|TRACHEA|TRUNK|ULNA|URETER|UTERUS|VESSEL|WHOLE|WHOLEBODY|WRIST|TO|AND|"
    r"CHESTABDOMEN|ABDOMENPELVIS|CHESTABDPELVIS|HEADNECK|NECKCHEST|TEMPORAL|PITUITARY|DENTAL)S?"
)


def check_nothing_identifying(rows: Dataset) -> None:
    """Refuses rows that were not de-identified by the preparation, or hold more than it writes.

    Verified in every row: the columns and their types; that keys have the form of keyed hashes, and those of phantoms are
    the ones of their seed; that all text is a technical term or a name of a condition, the body part one of known words; that
    no age is above 90; that provenance names this package's allow-list, and no path or person. Taken on trust: that keys of
    patients were made with a secret salt, and what the pixels show.

    Raises:
        ValueError: naming the column.
    """
    paired = "volume" not in rows.column_names
    kind = "paired-CT" if paired else "unpaired-CT"
    if extra := sorted(set(rows.column_names) ^ set(_COLUMNS if paired else _UNPAIRED_COLUMNS)):
        raise ValueError(f"Only the columns of the {kind} schema are pushed; these differ: {', '.join(extra)}.")
    for column in ("low", "full") if paired else ("volume",):
        if getattr(rows.features[column], "dtype", None) != "int16":
            raise ValueError(f"`{column}` does not hold volumes of int16 HU: prepare the data anew.")
    for column in ("dose_fraction", "noise_hu", "spacing_mm", "affine_lps"):
        values = rows.features[column]
        if not str(getattr(getattr(values, "feature", values), "dtype", "")).startswith("float"):
            raise ValueError(f"`{column}` does not hold numbers: prepare the data anew.")
    role = "target" if paired else "dose"
    light = rows.select_columns(["scan_key", "patient_key", "split", role, "checksum", "conditions", "provenance"])
    for row in light.with_format(None):
        _check_keys(row)
        _check_conditions(json.loads(row["conditions"]))
        _check_provenance(row["provenance"], row["patient_key"])


def _check_keys(row: Mapping[str, Any]) -> None:
    for column in ("scan_key", "patient_key"):
        if not _HASH.fullmatch(row[column]):
            raise ValueError(f"A value of `{column}` is no salted hash: prepare the data anew.")
    known_role = row["target"] in TARGETS if "target" in row else row["dose"] in DOSES
    if row["split"] not in SPLITS or not known_role or not _CHECKSUM.fullmatch(row["checksum"]):
        raise ValueError(
            "`split`, `target`, `dose` or `checksum` holds what the preparation does not write: prepare the data anew."
        )


def _check_conditions(conditions: Mapping[str, Any]) -> None:
    if extra := sorted(set(conditions) - set(ScanConditions().to_dict())):
        raise ValueError(f"`conditions` holds fields beyond `ScanConditions`: {', '.join(extra)}.")
    if conditions.get("text") is not None:
        raise ValueError("`conditions` holds a free text, which may name the patient: set its `text` to None.")
    for name, value in conditions.items():
        if name in ("findings", "findings_absent"):
            known = all(isinstance(one, str) and _NAME.fullmatch(one) for one in value)
        elif name == "contrast_phase":
            known = value is None or bool(_NAME.fullmatch(str(value)))
        elif name == "body_part":
            known = value is None or all(_BODY.fullmatch(word) for word in re.findall(r"[^\W\d_]+", str(value)))
        else:
            known = not isinstance(value, str) or bool(_TECHNICAL.fullmatch(value))
        if not known:
            raise ValueError(
                f"`{name}` of the `conditions` is no term known here, and may name the patient: set it to None."
            )
    if (conditions.get("age_years") or 0) > 90:
        raise ValueError("`age_years` of the `conditions` is above 90: ages above 89 are one group, stored as 90.")


def _check_provenance(text: str, patient_key: str) -> None:
    if any(mark in text for mark in ("/", "\\\\", "^", "@")):
        raise ValueError("`provenance` holds what looks like a path or a name: prepare the data anew.")
    provenance = json.loads(text)
    if provenance.get("deidentification") != DEIDENTIFICATION:
        raise ValueError(
            "`provenance` does not say that the row was de-identified by this package: prepare the data anew with "
            "`diffusers-ct prepare`. Data from elsewhere are not pushed."
        )
    if provenance.get("source") == "phantom" and patient_key != hashed_key("phantom", provenance.get("phantom_seed")):
        raise ValueError(
            "A row is said to be a phantom, but its `patient_key` is not that of its seed: prepare the data anew."
        )
    if any(len(one) > 64 for one in _strings(provenance)):
        raise ValueError("`provenance` holds a long text: prepare the data anew.")


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []
