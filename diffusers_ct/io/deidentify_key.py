"""The secret from which new UIDs, the shift of dates and pseudonyms follow: the same for the same, traceable by nobody."""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID

_STANDARD_ROOT = "1.2.840.10008."
# A year and more, so that no shifted date of a patient falls on another true date of a short follow-up; never forward.
_LEAST_DAYS, _RANGE_DAYS = 400, 3650
_NOON = timedelta(hours=12)


@dataclass(frozen=True)
class DeidentificationKey:
    """A secret of 256 bits. Whoever has it can link new UIDs and dates with the old ones: it never enters an output.

    Series de-identified with one key stay linked: one patient, one study, references between objects.

    Attributes:
        secret: 64 hexadecimal digits.
    """

    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.secret):
            raise ValueError(
                "A de-identification key is 64 hexadecimal digits: make one with `DeidentificationKey.random()`."
            )

    def __reduce__(self) -> Any:
        raise TypeError("A DeidentificationKey is secret and is not pickled: save it with `save`.")

    @classmethod
    def random(cls) -> "DeidentificationKey":
        """A new key from the system's source of randomness."""
        return cls(secrets.token_hex(32))

    @classmethod
    def load(cls, path: str | Path) -> "DeidentificationKey":
        """Reads a key that `save` wrote.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is no key, or others than its owner may read it.
        """
        path = Path(path)
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ValueError(f"{path} is a key that others may read: take their rights away (chmod 600) first.")
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise ValueError(f"{path} holds no de-identification key (64 hexadecimal digits).")
        return cls(text)

    def save(self, path: str | Path) -> Path:
        """Writes the key to a new file that its owner alone may read (mode 0600).

        Raises:
            FileExistsError: if there is something at `path`.
        """
        path = Path(path)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{self.secret}\n")
        return path

    def uid(self, uid: str) -> str:
        """The new UID of an object: of 128 keyed bits under the root of UUIDs (PS3.5 annex B.2); U of PS3.15 Table E.1-1.

        Those of the standard itself, such as well-known frames of reference, stay.
        """
        uid = str(uid).strip("\0 ")
        if is_of_the_standard(uid):
            return uid
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=4).int}"

    def pseudonym(self, patient: str) -> str:
        """A PatientID that stands for the patient."""
        return f"CT-{self._digest('patient', patient).hex()[:16].upper()}"

    def shift_days(self, patient: str) -> int:
        """By how many days this patient's dates go back: 400 to 4049."""
        return _LEAST_DAYS + int.from_bytes(self._digest("days", patient)[:8], "big") % _RANGE_DAYS

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.new(bytes.fromhex(self.secret), json.dumps([purpose, text]).encode(), hashlib.sha256).digest()


def is_of_the_standard(uid: str) -> bool:
    """Whether the standard itself gave out this UID (PS3.6 annex A): it names a class or a syntax, and no patient.

    The root alone does not tell: anyone can write a number behind it.
    """
    return uid.startswith(_STANDARD_ROOT) and UID(uid).name != uid  # a UID of the dictionary has another name


def patient_of(header: pydicom.Dataset) -> str:
    """Whose dates belong together: the PatientID, else the name, else the study."""
    for name in ("PatientID", "PatientName", "StudyInstanceUID"):
        text = str(header.get(name, "") or "").strip().casefold()
        if text:
            return f"{name} {text}"
    return ""


class ShiftedDates:
    """New dates and times of the objects of one study (PS3.15 E.3.6, with modified dates).

    Dates go back by the patient's days. Times count from the start of the study, which is put at noon, in whole seconds:
    what lies between two images of a study stays, the time of day goes. So does the time zone (TimezoneOffsetFromUTC is X
    of Table E.1-1): a moment that names another zone than the header's is first told in the header's.
    """

    def __init__(self, header: pydicom.Dataset, days: int) -> None:
        self._days = timedelta(days=days)
        self._study_date = _date_of(header.get("StudyDate"))
        self._study_time = _time_of(header.get("StudyTime"))
        self._zone = _zone_of(header.get("TimezoneOffsetFromUTC"))

    def pair(self, date_value: Any, time_value: Any) -> tuple[str, str]:
        """New (DA, TM) of a date and the time that belongs to it; what cannot be told is empty."""
        given, time = _date_of(date_value), _time_of(time_value)
        moment = self._moment(given, time)
        if moment is not None:
            return f"{moment:%Y%m%d}".zfill(8), f"{moment:%H%M%S}"
        return self._only_date(given), ""

    def moment(self, value: Any) -> str:
        """New DT of a date with time; empty if it cannot be told."""
        text = str(value or "").strip()
        given, time = _date_of(text[:8]), _time_of(re.split(r"[+-]", text[8:])[0])
        zone = _zone_of(text[-5:])
        if time is not None and zone is not None and self._zone is not None:
            time += self._zone - zone
        moment = self._moment(given, time)
        return self._only_date(given) if moment is None else f"{moment:%Y%m%d%H%M%S}".zfill(14)

    def _moment(self, given: date | None, time: timedelta | None) -> datetime | None:
        if time is None or self._study_time is None or self._study_date is None:
            return None
        started = datetime.combine(self._study_date, datetime.min.time()) + self._study_time
        there = datetime.combine(given or self._study_date, datetime.min.time()) + time
        try:
            return datetime.combine(self._study_date - self._days, datetime.min.time()) + _NOON + (there - started)
        except OverflowError:
            return None

    def _only_date(self, given: date | None) -> str:
        try:
            return f"{given - self._days:%Y%m%d}".zfill(8) if given is not None else ""
        except OverflowError:
            return ""


def _date_of(value: Any) -> date | None:
    """Of "YYYYMMDD", or the "YYYY.MM.DD" of the standard before 3.0."""
    found = re.fullmatch(r"(\d{4})[.]?(\d{2})[.]?(\d{2})", str(value or "").strip())
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None


def _time_of(value: Any) -> timedelta | None:
    """Time since midnight, cut to whole seconds, of "HHMMSS.FFFFFF" with parts left out, or "HH:MM:SS"."""
    found = re.fullmatch(r"(\d{2}):?(\d{2})?:?(\d{2})?([.]\d*)?", str(value or "").strip())
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[:3])
    return (
        timedelta(hours=hours, minutes=minutes, seconds=seconds)
        if hours < 24 and minutes < 60 and seconds <= 60
        else None
    )


def _zone_of(value: Any) -> timedelta | None:
    """Hours and minutes east of UTC, of "+HHMM" or "-HHMM" (PS3.5 section 6.2, DT)."""
    found = re.fullmatch(r"([+-])(\d{2})(\d{2})", str(value or "").strip())
    if found is None:
        return None
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return -offset if found[1] == "-" else offset
