"""What identifies the patient in a header: one list, for what is written and for what is shown.

A header that is written loses a value that holds a name, or an identifier as a whole: "General" of a hospital's name also
stands in "General Electric", and a copy without its manufacturer would be worth less. A text that is shown loses every word
of them, for a star too many costs nothing there.
"""

import re
from collections.abc import Iterator
from typing import Any

import pydicom
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

# Who, where and when, by Table E.1-1 of PS3.15; every attribute that holds a person's name (VR PN) comes to it.
IDENTIFIERS = (
    "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers",
    "MilitaryRank", "Occupation", "PatientReligiousPreference", "MedicalRecordLocator", "PatientComments",
    "CurrentPatientLocation", "AccessionNumber", "AdmissionID", "ServiceEpisodeID", "RequestedProcedureID", "StudyID",
    "ScheduledProcedureStepID", "PerformedProcedureStepID", "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "ResponsibleOrganization",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialCoordinatingCenterName", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate",
)  # fmt: skip
# These tell of the patient as a whole; their single words are those of any scan ("chest").
COMMENTS = ("ImageComments", "AdditionalPatientHistory", "StudyComments", "VisitComments")

_NAMES = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "PN")
_COMMENTS = frozenset(tag for name in COMMENTS if (tag := tag_for_keyword(name)) is not None)
_HIDDEN = _NAMES | _COMMENTS | frozenset(tag for name in IDENTIFIERS if (tag := tag_for_keyword(name)) is not None)
_SHORTEST_WORD, _SHORTEST_IDENTIFIER = 3, 4


def without_identity(text: str, header: pydicom.Dataset) -> str:
    """A free text without words that name the patient, people, places or dates in the same header."""
    hidden: set[str] = set()
    for tag in _HIDDEN & header.keys() if text else ():
        for whole in map(str, _values(header[tag].value)):
            hidden.add(whole)
            if tag not in _COMMENTS:
                hidden.update(re.split(r"[\s^=,]+", whole))
    for word in sorted(hidden, key=len, reverse=True):
        if len(word) >= _SHORTEST_WORD:
            text = re.sub(re.escape(word), "*", text, flags=re.IGNORECASE)
    return "".join(c if c.isprintable() else " " for c in text).strip()


class Identity:
    """What identifies the patient in one header, at any depth of it."""

    def __init__(self, header: pydicom.Dataset) -> None:
        self._names: set[str] = set()
        self._identifiers: set[str] = set()
        for element in _all_elements(header):
            folded = [str(value).strip().casefold() for value in _values(element.value)]
            if element.VR == "PN":
                words = [word for value in folded for word in _words(value)]
                self._names.update(word for word in words if len(word) >= _SHORTEST_WORD and not word.isdigit())
            elif element.keyword in (*IDENTIFIERS, *COMMENTS):
                self._identifiers.update(value for value in folded if len(value) >= _SHORTEST_IDENTIFIER)

    def stands_in(self, text: str) -> bool:
        """Whether a text holds a word of a name, or an identifier."""
        folded = text.casefold()
        return any(value in folded for value in self._identifiers) or not self._names.isdisjoint(_words(folded))


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
        if element.VR != "SQ":
            yield element
        for item in items:
            yield from _all_elements(item)


def _words(folded: str) -> list[str]:
    return re.findall(r"[^\W_]+", folded)


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]
