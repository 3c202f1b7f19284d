"""What identifies a patient in a header, told by the standard's own table, and where such a value is found as bytes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pydicom

TABLE = Path(__file__).with_name("table_e_1_1.txt")
# Told apart from words of no patient.
_WORDLESS = re.compile(
    r"(anon\w*|removed.*|unknown|none|null|physician|station|department|institution|n/?a|[\W_0]*)", re.I
)


def table_e_1_1() -> dict[str, str]:
    """Tag as eight hexadecimal digits, x for any -> action of the Basic Profile."""
    lines = TABLE.read_text().splitlines()[1:]
    return dict(line.split() for line in lines)


def action_of(tag: int) -> str | None:
    text = f"{int(tag):08x}"
    masked = {"50": "50xxxxxx", "60": f"60xx{text[4:]}"}.get(text[:2], text)
    return table_e_1_1().get(masked)


def elements_of(dataset: pydicom.Dataset) -> Iterator[pydicom.DataElement]:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements_of(item)


def identifying_values(dataset: pydicom.Dataset, kept: tuple[str, ...] = ()) -> set[str]:
    """Values of at least four characters of all attributes in Table E.1-1, names also by their components."""
    table = table_e_1_1()
    technical = " ".join(
        str(e.value)
        for e in elements_of(dataset)
        if not e.tag.is_private and f"{int(e.tag):08x}" not in table and e.VR != "SQ"
    ).casefold()
    values: set[str] = set()
    for e in elements_of(dataset):
        if (
            e.tag.is_private
            or f"{int(e.tag):08x}" not in table
            or e.keyword in kept
            or e.VR in ("SQ", "OB", "OW", "UN")
        ):
            continue
        for one in e.value if isinstance(e.value, list | pydicom.multival.MultiValue) else [e.value]:
            text = str(one if one is not None else "").strip()
            if e.VR == "UI":
                if text and not text.startswith("1.2.840.10008."):
                    values.add(text)
                continue
            for part in (text, *(re.split(r"[\^=]", text) if e.VR == "PN" else ())):
                if len(part) < 4 or _WORDLESS.fullmatch(part):
                    continue
                if part.isdigit() and len(part) < 6:  # stands in any number
                    continue
                # a time of one or two different digits is any number; a word of the technique is no patient's
                if e.VR in ("TM", "DT", "DS", "IS", "DA") and len(set(part) - {"."}) < 4:
                    continue
                if e.VR not in ("PN", "DA", "DT", "UI") and part.casefold() in technical:
                    continue
                values.add(part)
    return values


def found_in(content: bytes, values: set[str]) -> set[str]:
    """The values that stand in `content`, in ASCII, Latin-1, UTF-8 or UTF-16."""
    out = set()
    for value in values:
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
            try:
                coded = value.encode(encoding)
            except UnicodeEncodeError:
                continue
            if coded in content:
                out.add(value)
    return out
