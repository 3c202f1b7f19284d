"""The allow-list against the standard's table, the key, shifted dates, and text in the pixels."""

import datetime
import os
import pickle
import stat

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.datadict import tag_for_keyword

from diffusers_ct.io import DeidentificationKey, DeidentificationOptions, deidentify_profile, read_volume
from diffusers_ct.io.burned_in import burned_in_reasons, looks_like_text, shows_face
from diffusers_ct.io.deidentify import Deidentifier, allowed_elements
from diffusers_ct.io.deidentify_key import ShiftedDates
from diffusers_ct.io.identity import COMMENTS, IDENTIFIERS, Identity, without_identity
from tests.io.identity import action_of, table_e_1_1
from tests.io.synthetic import hu_of, write_series

KEY = DeidentificationKey("0123456789abcdef" * 4)


def test_the_table_is_the_standard_s():
    table = table_e_1_1()
    assert len(table) == 655 and table["00100010"] == "Z" and table["00080018"] == "U" and table["00081030"] == "X"


@pytest.mark.parametrize("name", ["TECHNIQUE", "IMAGE", "ENHANCED", "SEQUENCES", "CODES"])
def test_what_is_kept_unchanged_is_not_in_table_e_1_1(name):
    for keyword in getattr(deidentify_profile, name):
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        assert action_of(tag) is None, keyword


def test_what_stands_in_table_e_1_1_is_treated_as_it_says():
    p = deidentify_profile
    assert all(action_of(tag_for_keyword(k)) == "U" for k in p.UIDS if k != "SOPInstanceUIDOfConcatenationSource")
    assert {action_of(tag_for_keyword(k)) for k in p.EMPTY} == {"Z"}
    assert {action_of(tag_for_keyword(k)) for k in p.REFERENCES} == {"X/Z/U*"}
    # K of the column of the Retain Device Identity Option
    assert set(p.DEVICE) == {"StationName", "DeviceSerialNumber", "GantryID", "GeneratorID", "DetectorID"}
    for pair in p.DATES:
        assert all(action_of(tag_for_keyword(k)) is not None for k in pair)


def test_codes_of_the_method_are_those_of_cid_7050():
    everything = DeidentificationOptions(patient_characteristics=True).methods(safe_private=True)
    assert [code for code, _ in everything] == ["113100", "113107", "113108", "113109", "113111"]
    least = DeidentificationOptions(dates="remove", device_identity=False).methods(safe_private=False)
    assert [code for code, _ in least] == ["113100"]
    header = allowed_elements(pydicom.Dataset(), "basic", KEY)
    assert [item.CodeValue for item in header.DeidentificationMethodCodeSequence] == ["113100", "113107", "113109"]
    assert {item.CodingSchemeDesignator for item in header.DeidentificationMethodCodeSequence} == {"DCM"}
    assert header.PatientIdentityRemoved == "YES" and header.LongitudinalTemporalInformationModified == "REMOVED"
    with pytest.raises(ValueError, match="dates"):
        DeidentificationOptions(dates="keep")


def test_the_key_maps_the_same_to_the_same_and_is_kept_secret(tmp_path):
    other = DeidentificationKey.random()
    assert KEY.uid("1.2.3") == KEY.uid("1.2.3\0") != other.uid("1.2.3")
    assert KEY.uid("1.2.3") != KEY.uid("1.2.4") and KEY.uid("1.2.840.10008.1.2") == "1.2.840.10008.1.2"
    made_up = "1.2.840.10008.1547.16050116"  # below the standard's root, and none of its UIDs
    assert KEY.uid(made_up) != made_up and KEY.uid("1.2.840.10008.1.4.1.1") == "1.2.840.10008.1.4.1.1"
    new = KEY.uid("1.2.3")
    assert new.startswith("2.25.") and len(new) <= 64 and pydicom.uid.UID(new).is_valid
    assert KEY.pseudonym("a") != KEY.pseudonym("b") and len(KEY.pseudonym("a")) == 19
    days = [KEY.shift_days(str(k)) for k in range(500)]
    assert min(days) >= 400 and max(days) < 4050 and len(set(days)) > 400
    assert KEY.secret not in repr(KEY)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)
    path = other.save(tmp_path / "key")
    assert DeidentificationKey.load(path) == other
    with pytest.raises(FileExistsError):
        other.save(path)
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        with pytest.raises(ValueError, match="others may read"):
            DeidentificationKey.load(path)
    (tmp_path / "bad").write_text("secret")
    (tmp_path / "bad").chmod(0o600)
    with pytest.raises(ValueError, match="holds no") as caught:
        DeidentificationKey.load(tmp_path / "bad")
    assert "secret" not in str(caught.value).split("bad", 1)[1]


def shifted(**header) -> pydicom.Dataset:
    d = pydicom.Dataset()
    d.PatientID = "P1"
    for name, value in header.items():
        setattr(d, name, value)
    return Deidentifier(KEY).copied(d)


def test_dates_keep_their_intervals_between_studies_and_times_within_one():
    first = shifted(
        StudyDate="20200228", StudyTime="083015.123456", AcquisitionDate="20200228", AcquisitionTime="083145.5"
    )
    later = shifted(StudyDate="20200505", StudyTime="2210", ContentDate="20200506", ContentTime="001000")
    day = datetime.date.fromisoformat
    assert day(later.StudyDate) - day(first.StudyDate) == datetime.date(2020, 5, 5) - datetime.date(2020, 2, 28)
    gone = datetime.date(2020, 2, 28) - day(first.StudyDate)
    assert gone.days == KEY.shift_days("PatientID p1")
    assert (first.StudyTime, first.AcquisitionTime) == ("120000", "120130")  # 90 s after the start, as before
    assert later.ContentTime == "140000" and later.ContentDate == later.StudyDate  # two hours later, over midnight
    assert first.LongitudinalTemporalInformationModified == "MODIFIED"
    moment = shifted(StudyDate="20200228", StudyTime="083015", AcquisitionDateTime="20200228083145.5+0200")
    assert moment.AcquisitionDateTime == f"{first.StudyDate}120130"


@pytest.mark.parametrize(
    ("own", "moment", "then"),
    [
        ("+0100", "20200228083145+0100", "120130"),
        ("+0100", "20200228073145+0000", "120130"),  # the same instant, told in London
        ("+0100", "20200228023145-0500", "120130"),
        ("+0100", "20200228083145", "120130"),
        ("", "20200228083145+0530", "120130"),  # a zone that nothing compares with is the study's
    ],
)
def test_a_moment_of_another_time_zone_keeps_its_distance_and_loses_its_zone(own, moment, then):
    d = shifted(StudyDate="20200228", StudyTime="083015", TimezoneOffsetFromUTC=own, AcquisitionDateTime=moment)
    assert d.AcquisitionDateTime == f"{d.StudyDate}{then}" and "TimezoneOffsetFromUTC" not in d


def test_removed_dates_leave_what_the_object_must_have():
    frame, content = pydicom.Dataset(), pydicom.Dataset()
    content.FrameReferenceDateTime, content.StackID = "20200228083145", "1"
    frame.FrameContentSequence = [content]
    d = pydicom.Dataset()
    d.StudyDate, d.ContentDate, d.ContentTime, d.SeriesDate = "20200228", "20200228", "0830", "20200228"
    d.AcquisitionDateTime, d.PerFrameFunctionalGroupsSequence = "20200228083145", [frame]
    for kind, day, time in (
        ("1.2.840.10008.5.1.4.1.1.2.1", "19000101", "000000"),
        ("1.2.840.10008.5.1.4.1.1.2", "", ""),
    ):
        d.SOPClassUID = kind
        kept = Deidentifier(KEY, DeidentificationOptions(dates="remove")).copied(d)
        assert (kept.ContentDate, kept.ContentTime, kept.AcquisitionDateTime) == (day, time, day + time)
        assert (
            kept.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0].FrameReferenceDateTime == "19000101000000"
        )
        assert "SeriesDate" not in kept and kept.LongitudinalTemporalInformationModified == "REMOVED"
    assert "FrameReferenceDateTime" not in allowed_elements(
        content, "basic", KEY, DeidentificationOptions(dates="remove")
    )


def test_what_a_ct_image_must_have_stays_and_is_empty():
    d = pydicom.Dataset()
    d.AcquisitionNumber, d.PositionReferenceIndicator, d.Manufacturer = None, "Quixote", "ACME"
    d.PatientName = "Quixote^Alonso"
    kept = Deidentifier(KEY).copied(d)
    assert (
        kept.AcquisitionNumber is None and kept.PositionReferenceIndicator in (None, "") and kept.Manufacturer == "ACME"
    )
    assert "KVP" not in kept  # nor in the source


def test_every_uid_of_an_element_is_mapped_and_classes_are_the_standards():
    d = pydicom.Dataset()
    d.IrradiationEventUID, d.AcquisitionUID = ["1.2.3", "1.2.4"], "1.2.x"
    items = []
    for kind in ("1.2.840.10008.5.1.4.1.1.2", "1.2.826.0.1.3680043.1605", "1.2.840.10008.1605.1547"):
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, "1.2.5"
        items.append(item)
    d.ReferencedImageSequence = items
    kept = Deidentifier(KEY).copied(d)
    assert kept.IrradiationEventUID == [KEY.uid("1.2.3"), KEY.uid("1.2.4")] and "AcquisitionUID" not in kept
    assert [i.ReferencedSOPClassUID for i in kept.ReferencedImageSequence] == ["1.2.840.10008.5.1.4.1.1.2"]
    assert kept.ReferencedImageSequence[0].ReferencedSOPInstanceUID == KEY.uid("1.2.5")


def test_one_list_tells_what_identifies_for_headers_and_for_messages():
    d = pydicom.Dataset()
    secrets = {
        "PatientName": "Quixote^Alonso", "ContentCreatorName": "Cervantes^M", "PatientAddress": "Toboso", "Occupation": "hidalgo",
        "ClinicalTrialSiteName": "Barataria", "SeriesDate": "16050116", "AdmissionID": "ROC-77", "ImageComments": "windmill hit",
    }  # fmt: skip
    for name, value in secrets.items():
        setattr(d, name, value)
    for value in (
        "quixote",
        "ALONSO",
        "Cervantes",
        "Toboso",
        "hidalgo",
        "Barataria",
        "16050116",
        "ROC-77",
        "windmill hit",
    ):
        assert without_identity(f"thorax {value} 3 mm", d) == "thorax * 3 mm"
        assert Identity(d).stands_in(f"thorax {value} 3 mm")
    assert without_identity("windmill protocol", d) == "windmill protocol"  # one word of a comment is anybody's
    d.InstitutionName = "Mancha General"
    assert without_identity("General Electric", d) == "* Electric" and not Identity(d).stands_in("General Electric")


def test_notes_that_quote_a_text_do_not_quote_the_patient(tmp_path):
    write_series(tmp_path, hu_of(), RescaleType="HU of Quixote")
    notes = " ".join(read_volume(tmp_path).source.notes)
    assert "RescaleType (0028,1054) is HU of *" in notes and "Quixote" not in notes


def test_the_list_of_identifiers_is_of_table_e_1_1():
    for name in (*IDENTIFIERS, *COMMENTS):
        assert action_of(tag_for_keyword(name)) is not None, name


@pytest.mark.parametrize("garbled", ["Quixote", "20201399", "2020", "99999999", "", "00000101"])
def test_what_is_no_date_is_left_out(garbled):
    d = pydicom.Dataset()
    d.add_new("StudyDate", "DA", garbled)
    assert ShiftedDates(d, 400).pair(garbled, "120000") == ("", "")
    assert ShiftedDates(d, 400).moment(garbled) == ""


def test_dates_can_be_removed_and_device_and_patient_follow_their_options():
    d = pydicom.Dataset()
    d.PatientID, d.PatientSex, d.PatientAge, d.PatientWeight = "P1", "F", "093Y", "61.5"
    d.StudyDate, d.StudyTime, d.SeriesDate, d.StationName, d.DeviceSerialNumber = (
        "20200228",
        "0830",
        "20200228",
        "CT4",
        "6022",
    )
    bare = Deidentifier(KEY, DeidentificationOptions(dates="remove", device_identity=False)).copied(d)
    assert bare.StudyDate == "" and "SeriesDate" not in bare and "StationName" not in bare and "PatientAge" not in bare
    assert bare.PatientSex == "" and bare.LongitudinalTemporalInformationModified == "REMOVED"
    full = Deidentifier(KEY, DeidentificationOptions(patient_characteristics=True)).copied(d)
    assert (full.PatientSex, full.PatientAge, full.PatientWeight) == ("F", "090Y", 61.5)
    assert (full.StationName, full.DeviceSerialNumber) == ("CT4", "6022")
    for age, kept in (("089Y", "089Y"), ("090Y", "090Y"), ("999M", "999M"), ("012D", "012D")):
        d.PatientAge = age
        assert Deidentifier(KEY, DeidentificationOptions(patient_characteristics=True)).copied(d).PatientAge == kept


def test_texts_that_are_kept_never_hold_the_patient_and_numbers_never_a_text():
    d = pydicom.Dataset()
    d.PatientName, d.PatientID, d.InstitutionName = "Quixote^Alonso", "HIDALGO-1605", "La Mancha"
    d.Manufacturer, d.BodyPartExamined, d.StationName = "ACME", "QUIXOTE", "LA MANCHA CT2"
    d.ConvolutionKernel, d.ImageType = ["B30f", "alonso"], ["ORIGINAL", "PRIMARY", "AXIAL", "HIDALGO-1605"]
    d.SoftwareVersions = "Zoë"
    d.add_new("KVP", "LT", "Alonso Quixote")
    d.add_new("Exposure", "IS", "150")
    cleaner = Deidentifier(KEY)
    kept = cleaner.copied(d)
    assert kept.Manufacturer == "ACME" and kept.ConvolutionKernel == "B30f" and kept.Exposure == 150
    assert kept.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert not {"BodyPartExamined", "StationName", "SoftwareVersions"} & set(kept.dir()) and kept.KVP is None
    assert {"BodyPartExamined", "StationName", "KVP", "SoftwareVersions", "ConvolutionKernel"} <= cleaner.dropped


def test_private_attributes_are_kept_only_by_creator_and_form():
    d = pydicom.Dataset()
    ge = d.private_block(0x0019, "GEMS_ACQU_01", create=True)
    ge.add_new(0x23, "DS", "39.375")
    ge.add_new(0x24, "LO", "Quixote")
    ge.add_new(0x9E, "LO", "Quixote")
    d.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x27, "SH", "0.984:1")
    d.private_block(0x0045, "ACME", create=True).add_new(0x01, "SS", 64)
    d.private_block(0x01F1, "ELSCINT1", create=True).add_new(0x26, "UN", b"Quixote")
    kept = Deidentifier(KEY).copied(d)
    private = {e.name: e.value for e in kept if e.tag.is_private and not e.tag.is_private_creator}
    assert sorted(map(str, private.values())) == ["0.984:1", "39.375"]
    assert kept.private_block(0x0019, "GEMS_ACQU_01")[0x23].value == 39.375


def test_private_attributes_are_coded_as_kept_only_where_some_were():
    for creator, coded in (("GEMS_ACQU_01", True), ("ACME", False)):
        d = pydicom.Dataset()
        d.private_block(0x0019, creator, create=True).add_new(0x23, "DS", "39.375")
        kept = Deidentifier(KEY).copied(d)
        assert any(element.tag.is_private for element in kept) is coded
        assert ("113111" in [item.CodeValue for item in kept.DeidentificationMethodCodeSequence]) is coded
        again = allowed_elements(kept, "keep_patient")  # which keeps no private attribute
        assert "113111" not in [item.CodeValue for item in again.DeidentificationMethodCodeSequence]


def test_an_object_that_was_deidentified_before_still_says_so_where_it_stays_with_its_patient():
    before = Deidentifier(KEY).copied(pydicom.Dataset())
    again = allowed_elements(before, "keep_patient")
    assert again.PatientIdentityRemoved == "YES"
    assert [i.CodeValue for i in again.DeidentificationMethodCodeSequence] == ["113100", "113107", "113109"]
    assert "PatientIdentityRemoved" not in allowed_elements(pydicom.Dataset(), "keep_patient")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "secondary capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen"),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "dose page"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER"]}, "without a place"),
        ({"SeriesDescription": "Dose Report"}, "dose report"),
        ({"ProtocolName": "Patient Protocol"}, "protocol page"),
        ({"SamplesPerPixel": 3}, "coloured"),
    ],
)
def test_headers_that_speak_of_text_in_the_pixels(tags, reason):
    d = pydicom.Dataset()
    d.ImageType, d.SOPClassUID, d.ImagePositionPatient = (
        ["ORIGINAL", "PRIMARY", "AXIAL"],
        "1.2.840.10008.5.1.4.1.1.2",
        [0, 0, 0],
    )
    d.SeriesDescription, d.BurnedInAnnotation, d.SamplesPerPixel = "Low dose chest", "NO", 1
    assert burned_in_reasons(d) == []
    if tags.get("ImageType", [""])[-1] == "OTHER":
        del d.ImagePositionPatient
    for name, value in tags.items():
        setattr(d, name, value)
    assert any(reason in text for text in burned_in_reasons(d))


def test_faces_are_told_from_the_body_part():
    d = pydicom.Dataset()
    d.BodyPartExamined = "CHEST"
    assert not shows_face(d)
    d.BodyPartExamined = "Head"
    assert shows_face(d)


def body() -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    hu = np.where((y - 140) ** 2 + (x - 128) ** 2 < 90**2, 40.0, -1000.0) + rng.normal(0, 12, (256, 256))
    hu[235:238, 30:226] = 120.0  # the table
    hu[100:104, 20:24] = 300.0  # a marker beside the patient
    return np.rint(hu)


def test_a_line_of_text_beside_the_body_is_seen_and_a_scan_alone_is_not():
    assert not looks_like_text(body())
    picture = Image.new("1", (256, 256))
    ImageDraw.Draw(picture).text((8, 8), "QUIXOTE ALONSO 1547", fill=1)
    for value in (3071.0, 100.0):
        drawn = np.where(np.asarray(picture), value, body())
        assert looks_like_text(drawn)
    noisy = np.where(np.asarray(picture), 100 + np.random.default_rng(1).normal(0, 30, (256, 256)).round(), body())
    assert not looks_like_text(noisy)  # not of one value: said not to be found
