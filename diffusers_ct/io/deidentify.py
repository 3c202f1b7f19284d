"""What of a source's header may enter a written object: an allow-list, so that an unknown tag never slips through.

After the Basic Application Level Confidentiality Profile (DICOM PS3.15 annex E) with the options to retain device identity,
longitudinal temporal information with modified dates, and safe private attributes. Sequences are built anew of allowed
items; texts that are kept must not hold what identifies the patient elsewhere in the same header.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from .deidentify_key import DeidentificationKey, ShiftedDates, patient_of
from .deidentify_profile import (
    CHARACTERISTICS,
    CODE_MEANINGS,
    CODES,
    DATES,
    DATETIMES,
    DEVICE,
    EMPTY,
    ENHANCED,
    IMAGE,
    METHODS,
    NUMBER,
    PATIENT,
    REFERENCES,
    SAFE_PRIVATE,
    SEQUENCES,
    TECHNIQUE,
    UIDS,
    DeidentificationOptions,
)

Deidentify = Literal["basic", "keep_patient"]
DEIDENTIFY_CHOICES: tuple[Deidentify, ...] = ("basic", "keep_patient")

METHOD = "diffusers-ct: allow-list after PS3.15 annex E basic profile"
_NUMERIC_VRS = ("DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "UV", "SV")
_CODE_STRING = re.compile(r"[A-Za-z0-9 _./+-]{0,16}")  # PS3.5 section 6.2, and the small letters that occur
_SHORT_TEXT = re.compile(r"[ -\]_-~]{0,64}")  # printable ASCII without ^, which parts the components of names
_NUMBER_TEXT = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_PLAIN = (*TECHNIQUE, *IMAGE, *ENHANCED)
# Values of these must not stand within a text that is kept.
_IDENTIFIERS = (
    "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers",
    "PatientInsurancePlanCodeSequence", "AccessionNumber", "AdmissionID", "RequestedProcedureID", "StudyID", "StudyDate",
    "ScheduledProcedureStepID", "PerformedProcedureStepID", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "ClinicalTrialSubjectID", "CurrentPatientLocation", "Occupation", "MilitaryRank",
    "MedicalRecordLocator", "PatientComments", "ImageComments", "AdditionalPatientHistory", "PatientReligiousPreference",
)  # fmt: skip
_SHORTEST_NAME, _SHORTEST_IDENTIFIER = 3, 4
# Enumerated values of attributes that must be there, whatever the patient's name is.
_TERMS = (
    "ORIGINAL",
    "DERIVED",
    "PRIMARY",
    "SECONDARY",
    "AXIAL",
    "LOCALIZER",
    "MIXED",
    "CT",
    "MONOCHROME1",
    "MONOCHROME2",
    "YES",
    "NO",
)


def allowed_elements(
    header: pydicom.Dataset,
    mode: Deidentify,
    key: DeidentificationKey | None = None,
    options: DeidentificationOptions | None = None,
) -> pydicom.Dataset:
    """The part of a source header that may be written into an object derived from it, without its UIDs.

    Args:
        header: of the source.
        mode: "basic" leaves the patient out, "keep_patient" is for an object that stays with its patient; free text,
            sequences and private tags are dropped in both, but for what the profile calls safe in "basic".
        key: of "basic"; without it dates are shifted as by nobody else.
        options: of "basic".

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in DEIDENTIFY_CHOICES:
        raise ValueError(f"`deidentify` must be one of {DEIDENTIFY_CHOICES}, got {mode!r}.")
    if mode == "basic":
        return Deidentifier(key or DeidentificationKey.random(), options).derived(header)
    kept = pydicom.Dataset()
    for name in TECHNIQUE + PATIENT:
        if name in header and header.get(name) not in (None, ""):
            kept[name] = header[name]
    if header.get("PatientIdentityRemoved") == "YES":  # by someone before: still so
        kept.PatientIdentityRemoved = "YES"
        before = {str(item.get("CodeValue", "")) for item in header.get("DeidentificationMethodCodeSequence") or ()}
        _add_methods(kept, [method for method in METHODS if method[0] in before])
    return kept


class Deidentifier:
    """Makes headers anew out of what the profile allows.

    Attributes:
        key: from which UIDs, dates and pseudonyms follow.
        options: of the profile.
        dropped: names of attributes that are allowed and were left out nevertheless: their value held a name or identifier
            of the patient, or is not of their kind.
    """

    def __init__(self, key: DeidentificationKey, options: DeidentificationOptions | None = None) -> None:
        self.key = key
        self.options = options or DeidentificationOptions()
        self.dropped: set[str] = set()

    def derived(self, header: pydicom.Dataset) -> pydicom.Dataset:
        """What an object derived from `header` takes over: technique, device, dose, shifted dates; no UID."""
        kept = pydicom.Dataset()
        identity = _identity_of(header)
        self._attributes(header, kept, TECHNIQUE, identity)
        self._patient_study_and_device(header, kept, identity)
        return kept

    def copied(self, header: pydicom.Dataset) -> pydicom.Dataset:
        """The de-identified header of an image that stays itself; no pixels."""
        kept = pydicom.Dataset()
        identity = _identity_of(header)
        self._item(header, kept, identity, self._dates(header))
        self._patient_study_and_device(header, kept, identity)
        return kept

    def _dates(self, header: pydicom.Dataset) -> ShiftedDates | None:
        if self.options.dates == "remove":
            return None
        return ShiftedDates(header, self.key.shift_days(patient_of(header)))

    def _patient_study_and_device(self, header: pydicom.Dataset, kept: pydicom.Dataset, identity: "_Identity") -> None:
        for name in EMPTY:
            setattr(kept, name, "")
        patient = patient_of(header)
        kept.PatientID = self.key.pseudonym(patient) if patient else ""
        if self.options.device_identity:
            self._attributes(header, kept, DEVICE, identity)
        if self.options.patient_characteristics:
            self._attributes(header, kept, CHARACTERISTICS, identity)
            kept.PatientSex = sex if (sex := str(header.get("PatientSex", ""))) in ("M", "F", "O") else ""
            if "PatientAge" in kept:
                kept.PatientAge = _age_up_to_90(str(kept.PatientAge))
        dates = self._dates(header)
        shifted = False
        for date_name, time_name in DATES if dates is not None else ():
            if date_name in header or time_name in header:
                values = dates.pair(header.get(date_name), header.get(time_name))  # type: ignore[union-attr]
                for name, value in zip((date_name, time_name), values):
                    if value or name in EMPTY:
                        setattr(kept, name, value)
                        shifted |= bool(value)
        self._moments(header, kept, dates)
        if agent := str(header.get("ContrastBolusAgent", "") or "").strip():
            # D of Table E.1-1: whether there was one; which one is free text
            kept.ContrastBolusAgent = "NONE" if agent.upper() in ("NONE", "NO") else "CONTRAST"
        self._codes(header, kept)
        self._safe_private(header, kept)
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = METHOD
        _add_methods(kept, self.options.methods())
        kept.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"

    def _item(
        self, source: pydicom.Dataset, kept: pydicom.Dataset, identity: "_Identity", dates: ShiftedDates | None
    ) -> None:
        """What is allowed at any depth."""
        self._attributes(source, kept, _PLAIN, identity)
        for name in UIDS:
            if uid := _single_uid(source, name):
                setattr(kept, name, self.key.uid(uid))
        self._moments(source, kept, dates)
        self._codes(source, kept)
        for name in REFERENCES:
            items = [item for one in _items(source, name) if (item := self.reference(one)) is not None]
            if items:
                setattr(kept, name, pydicom.Sequence(items))
        for name in SEQUENCES:
            items = []
            for one in _items(source, name):
                item = pydicom.Dataset()
                self._item(one, item, identity, dates)
                items.append(item)
            if any(len(item) for item in items):  # an item without content still counts where frames are numbered
                setattr(kept, name, pydicom.Sequence(items))

    def reference(self, source: pydicom.Dataset) -> pydicom.Dataset | None:
        """A reference to an object by its class and new UID; None where the UID is missing."""
        uid = _single_uid(source, "ReferencedSOPInstanceUID")
        kind = _single_uid(source, "ReferencedSOPClassUID")
        if not uid or kind is None or not kind.startswith("1.2.840.10008."):
            return None
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID = kind
        item.ReferencedSOPInstanceUID = self.key.uid(uid)
        return item

    def _attributes(
        self, source: pydicom.Dataset, kept: pydicom.Dataset, names: Iterable[str], identity: "_Identity"
    ) -> None:
        for name in names:
            if name not in source:
                continue
            try:
                element = source[name]
                value = element.value
            except Exception:  # of any kind a garbled value brings about; its text would quote the value
                self.dropped.add(name)
                continue
            if value is None or value == "":
                continue
            if not _is_of_its_kind(name, element):
                self.dropped.add(name)
                continue
            values = _values(value)
            if element.VR not in (*_NUMERIC_VRS, "AT", "UI"):
                values = [one for one in values if one in _TERMS or not identity.stands_in(str(one))]
            if len(values) < len(_values(value)):
                self.dropped.add(name)
            if values:
                kept.add(DataElement(element.tag, element.VR, values[0] if len(values) == 1 else values))

    def _moments(self, source: pydicom.Dataset, kept: pydicom.Dataset, dates: ShiftedDates | None) -> None:
        for name in DATETIMES if dates is not None else ():
            if name in source and (moment := dates.moment(source.get(name))):  # type: ignore[union-attr]
                setattr(kept, name, moment)

    def _codes(self, source: pydicom.Dataset, kept: pydicom.Dataset) -> None:
        for name in CODES:
            items = []
            for one in _items(source, name):
                code = (str(one.get("CodeValue", "")), str(one.get("CodingSchemeDesignator", "")))
                if code in CODE_MEANINGS:
                    items.append(_code(*code, CODE_MEANINGS[code]))
            if items:
                setattr(kept, name, pydicom.Sequence(items))

    def _safe_private(self, source: pydicom.Dataset, kept: pydicom.Dataset) -> None:
        for (group, creator), elements in SAFE_PRIVATE.items():
            try:
                block = source.private_block(group, creator)
            except KeyError:
                continue
            for offset, form in elements.items():
                try:
                    element = block[offset]
                    texts = [str(v) for v in _values(element.value)]
                except Exception:  # missing, or garbled
                    continue
                allowed = _NUMBER_TEXT if form == NUMBER else re.compile(form)
                known_kind = element.VR in (*_NUMERIC_VRS, "CS", "SH", "LO")
                if texts and known_kind and all(allowed.fullmatch(text.strip()) for text in texts):
                    kept.private_block(group, creator, create=True).add_new(offset, element.VR, element.value)


class _Identity:
    """What identifies the patient in one header."""

    def __init__(self, names: set[str], identifiers: set[str]) -> None:
        self._names, self._identifiers = names, identifiers

    def stands_in(self, text: str) -> bool:
        folded = text.casefold()
        return any(value in folded for value in self._identifiers) or not self._names.isdisjoint(_words(folded))


def _identity_of(header: pydicom.Dataset) -> _Identity:
    names: set[str] = set()
    identifiers: set[str] = set()
    for element in _all_elements(header):
        if element.VR == "PN":
            words = [word for value in _values(element.value) for word in _words(str(value).casefold())]
            names.update(word for word in words if len(word) >= _SHORTEST_NAME and not word.isdigit())
        elif element.keyword in _IDENTIFIERS and element.VR != "SQ":
            values = [str(value).strip().casefold() for value in _values(element.value)]
            identifiers.update(value for value in values if len(value) >= _SHORTEST_IDENTIFIER)
    return _Identity(names, identifiers)


def _all_elements(header: pydicom.Dataset) -> Iterator[DataElement]:
    """All public elements that can be read, at any depth."""
    for tag in list(header.keys()):
        if tag.is_private or tag.group in (0x0028, 0x7FE0):
            continue
        try:
            element = header[tag]
            items = list(element.value) if element.VR == "SQ" else []
        except Exception:  # garbled: neither known nor written
            continue
        yield element
        for item in items:
            yield from _all_elements(item)


def _words(folded: str) -> list[str]:
    return re.findall(r"[^\W_]+", folded)


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _is_of_its_kind(name: str, element: DataElement) -> bool:
    """Whether an element has the VR of the data dictionary and values of that VR: a number is no place for a text."""
    tag = tag_for_keyword(name)
    assert tag is not None  # all names are of the dictionary
    if element.VR not in dictionary_VR(tag).split(" or "):
        return False
    values = _values(element.value)
    if element.VR in _NUMERIC_VRS:
        return all(isinstance(value, int | float) or hasattr(value, "is_finite") for value in values)
    if element.VR == "AT":
        return True
    if element.VR == "UI":
        return all(str(value).startswith("1.2.840.10008.") for value in values)  # a class; of an object: UIDS
    form = _CODE_STRING if element.VR in ("CS", "AS") else _SHORT_TEXT
    return element.VR in ("CS", "AS", "SH", "LO") and all(form.fullmatch(str(value)) for value in values)


def _single_uid(source: pydicom.Dataset, name: str) -> str | None:
    value = str(source.get(name, "") or "")
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else None


def _items(source: pydicom.Dataset, name: str) -> list[pydicom.Dataset]:
    try:
        element = source[name]
    except Exception:  # missing, or garbled
        return []
    return list(element.value) if element.VR == "SQ" else []


def _age_up_to_90(age: str) -> str:
    """An Age String of which ages above 89 are one group (45 CFR 164.514(b)(2)(i)(C))."""
    per_year = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
    found = re.fullmatch(r"(\d{3})([DWMY])", age)
    if found is None:
        return ""
    return "090Y" if int(found[1]) / per_year[found[2]] >= 90 else age


def _add_methods(kept: pydicom.Dataset, methods: list[tuple[str, str]]) -> None:
    if methods:
        kept.DeidentificationMethodCodeSequence = pydicom.Sequence(_code(value, "DCM", text) for value, text in methods)


def _code(value: str, scheme: str, meaning: str) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
