"""What of a source's header may enter a written object: an allow-list, so that an unknown tag never slips through.

After the Basic Application Level Confidentiality Profile (DICOM PS3.15 E.2, Table E.1-1) with the options to retain device
identity (E.3.8), longitudinal temporal information with modified dates (E.3.6) and safe private attributes (E.3.10).
Sequences are built anew of allowed items; texts that are kept must not hold what identifies the patient elsewhere in the
same header. The actions of Table E.1-1 become:

* X, and every attribute that is on no list: left out. So are D and Z of modules that a CT image need not have, such as those
  of clinical trials (PS3.3 C.7.1.3, C.7.2.3), with the whole module.
* Z, and D of texts: empty, or a value that says nothing (`PatientID`, `ContrastBolusAgent`).
* Z and D of dates and times: shifted (E.3.6), else empty, or 1 January 1900 where the object must have one.
* U: a UID that follows from the key, at any depth.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from .deidentify_key import DeidentificationKey, ShiftedDates, is_of_the_standard, patient_of
from .deidentify_profile import (
    CHARACTERISTICS,
    CODE_MEANINGS,
    CODES,
    DATES,
    DATETIMES,
    DEVICE,
    EMPTY,
    EMPTY_IF_UNKNOWN,
    ENHANCED,
    IMAGE,
    METHODS,
    NEEDED,
    NUMBER,
    PATIENT,
    REFERENCES,
    SAFE_PRIVATE,
    SAFE_PRIVATE_OPTION,
    SEQUENCES,
    TECHNIQUE,
    UIDS,
    DeidentificationOptions,
)
from .dicom_multiframe import ENHANCED_CT
from .errors import DamagedFileError
from .identity import Identity

Deidentify = Literal["basic", "keep_patient"]
DEIDENTIFY_CHOICES: tuple[Deidentify, ...] = ("basic", "keep_patient")

_METHOD = "diffusers-ct: allow-list after PS3.15 annex E basic profile"
_NUMERIC_VRS = ("DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "UV", "SV")
_CODE_STRING = re.compile(r"[A-Za-z0-9 _./+-]{0,16}")  # PS3.5 section 6.2, and the small letters that occur
_SHORT_TEXT = re.compile(r"[ -\]_-~]{0,64}")  # printable ASCII without ^, which parts the components of names
_NUMBER_TEXT = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_PLAIN = (*TECHNIQUE, *IMAGE, *ENHANCED)
# D of Table E.1-1 where neither a date nor nothing may stand: frames of an original image and the multi-frame image itself
# (PS3.3 C.7.6.16.2.2, C.7.6.16).
_NO_DAY, _NO_TIME = "19000101", "000000"
_FRAME_MOMENTS = ("FrameAcquisitionDateTime", "FrameReferenceDateTime")
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
        still = [method for method in METHODS if method != SAFE_PRIVATE_OPTION]  # no private attribute is kept here
        _add_methods(kept, [method for method in still if method[0] in before])
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
        """What an object derived from `header` takes over: technique, device, dose, shifted dates; no UID (PS3.15 E.2)."""
        kept = pydicom.Dataset()
        identity, dates = Identity(header), self._dates(header)
        self._attributes(header, kept, TECHNIQUE, identity)
        self._moments(header, kept, dates)
        self._codes(header, kept)
        self._patient_study_and_device(header, kept, identity, dates)
        return kept

    def copied(self, header: pydicom.Dataset) -> pydicom.Dataset:
        """The de-identified header of an image that stays itself (PS3.15 E.1.1, E.2); no pixels.

        Raises:
            DamagedFileError: if an element that the pixels need is garbled.
        """
        kept = pydicom.Dataset()
        identity, dates = Identity(header), self._dates(header)
        self._item(header, kept, identity, dates)
        self._patient_study_and_device(header, kept, identity, dates)
        multiframe = str(header.get("SOPClassUID", "")) in ENHANCED_CT
        for name, dummy in (
            ("ContentDate", _NO_DAY), ("ContentTime", _NO_TIME), ("AcquisitionDateTime", _NO_DAY + _NO_TIME),
        ):  # fmt: skip
            if name in header and name not in kept:
                setattr(kept, name, dummy if multiframe else "")
        for name in EMPTY_IF_UNKNOWN:
            if name in header and name not in kept:
                setattr(kept, name, None)
        return kept

    def _dates(self, header: pydicom.Dataset) -> ShiftedDates | None:
        if self.options.dates == "remove":
            return None
        return ShiftedDates(header, self.key.shift_days(patient_of(header)))

    def _patient_study_and_device(
        self, header: pydicom.Dataset, kept: pydicom.Dataset, identity: Identity, dates: ShiftedDates | None
    ) -> None:
        """Of the top level alone: who, where and when, and that they are gone (PS3.15 E.1.1; PS3.3 C.7.1.1, C.12.1)."""
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
        shifted = any(name in kept for name in DATETIMES)
        for date_name, time_name in DATES if dates is not None else ():
            if date_name in header or time_name in header:
                values = dates.pair(header.get(date_name), header.get(time_name))  # type: ignore[union-attr]
                for name, value in zip((date_name, time_name), values):
                    if value or name in EMPTY:
                        setattr(kept, name, value)
                        shifted |= bool(value)
        if agent := str(header.get("ContrastBolusAgent", "") or "").strip():
            # D of Table E.1-1: whether there was one; which one is free text
            kept.ContrastBolusAgent = "NONE" if agent.upper() in ("NONE", "NO") else "CONTRAST"
        self._safe_private(header, kept)
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = _METHOD
        private = any(element.tag.is_private for element in kept)
        _add_methods(kept, self.options.methods(safe_private=private))
        kept.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"

    def _item(
        self, source: pydicom.Dataset, kept: pydicom.Dataset, identity: Identity, dates: ShiftedDates | None
    ) -> None:
        """What is allowed at any depth, for Table E.1-1 holds in the items of sequences too (PS3.15 E.1.1)."""
        self._attributes(source, kept, _PLAIN, identity)
        for name in UIDS:
            if uids := [self.key.uid(uid) for uid in _uids(source, name)]:
                setattr(kept, name, uids[0] if len(uids) == 1 else uids)
        self._moments(source, kept, dates)
        for name in _FRAME_MOMENTS:
            if name in source and name not in kept:
                setattr(kept, name, _NO_DAY + _NO_TIME)
        self._codes(source, kept)
        for name in REFERENCES:
            items = [item for one in _items(source, name) if (item := self._reference(one)) is not None]
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

    def _reference(self, source: pydicom.Dataset) -> pydicom.Dataset | None:
        """A reference to an object by its class and new UID (X/Z/U* of Table E.1-1); None where they cannot be told."""
        uids, kinds = _uids(source, "ReferencedSOPInstanceUID"), _uids(source, "ReferencedSOPClassUID")
        if len(uids) != 1 or len(kinds) != 1 or not is_of_the_standard(kinds[0]):
            return None
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID = kinds[0]
        item.ReferencedSOPInstanceUID = self.key.uid(uids[0])
        return item

    def _attributes(
        self, source: pydicom.Dataset, kept: pydicom.Dataset, names: Iterable[str], identity: Identity
    ) -> None:
        for name in names:
            if name not in source:
                continue
            try:
                element = source[name]
                value = element.value
                of_its_kind = _is_of_its_kind(name, element)
            except Exception:  # of any kind a garbled value brings about; its text would quote the value
                value = of_its_kind = None
            else:
                if value is None or value == "":
                    continue
            if not of_its_kind:
                if name in NEEDED:
                    raise DamagedFileError(f"{name} has an impossible value, and the pixels mean nothing without it.")
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
        """Codes with the meaning known here: one written in a file is a descriptor that nobody cleaned (PS3.15 E.3.5)."""
        for name in CODES:
            items = []
            for one in _items(source, name):
                code = (str(one.get("CodeValue", "")), str(one.get("CodingSchemeDesignator", "")))
                if code in CODE_MEANINGS:
                    items.append(_code(*code, CODE_MEANINGS[code]))
            if items:
                setattr(kept, name, pydicom.Sequence(items))

    def _safe_private(self, source: pydicom.Dataset, kept: pydicom.Dataset) -> None:
        """Private attributes that PS3.15 E.3.10 calls safe, if their value is of the form they should have."""
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
        return all(is_of_the_standard(str(value)) for value in values)  # a class; of an object: UIDS
    form = _CODE_STRING if element.VR in ("CS", "AS") else _SHORT_TEXT
    return element.VR in ("CS", "AS", "SH", "LO") and all(form.fullmatch(str(value)) for value in values)


def _uids(source: pydicom.Dataset, name: str) -> list[str]:
    """The UIDs of an element; none where one of them is garbled."""
    values = [str(value) for value in _values(source.get(name))]
    return values if all(re.fullmatch(r"[0-9.]{1,64}", value) for value in values) else []


def _items(source: pydicom.Dataset, name: str) -> list[pydicom.Dataset]:
    try:
        element = source[name]
    except Exception:  # missing, or garbled
        return []
    return list(element.value) if element.VR == "SQ" else []


def _age_up_to_90(age: str) -> str:
    """An Age String of which ages above 89 are one group (PS3.15 E.3.7; 45 CFR 164.514(b)(2)(i)(C))."""
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
