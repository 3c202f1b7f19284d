"""Enhanced multi-frame CT: one header a frame, as a classic image would have it (DICOM PS3.3 A.38, C.7.6.16).

The attributes of a frame lie in its own functional groups or in those that all frames share. They are lifted to the top
of a dataset under the names of the classic CT image, so that everything that follows sees slices only.
"""

from collections.abc import Sequence
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword

from .errors import DamagedFileError, NotCTError

ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
# Functional group macros of PS3.3 tables A.38-2 and A.70-2 (legacy converted) whose attributes describe a CT frame.
_MACROS = (
    "PixelMeasuresSequence", "FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence",
    "FrameAnatomySequence", "PixelValueTransformationSequence", "FrameVOILUTSequence", "RealWorldValueMappingSequence",
    "ContrastBolusUsageSequence", "IrradiationEventIdentificationSequence", "CTImageFrameTypeSequence",
    "CTAcquisitionTypeSequence", "CTAcquisitionDetailsSequence", "CTTableDynamicsSequence", "CTPositionSequence",
    "CTGeometrySequence", "CTReconstructionSequence", "CTExposureSequence", "CTXRayDetailsSequence",
    "CardiacSynchronizationSequence", "TemporalPositionSequence", "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)  # fmt: skip
# Attributes that the classic image names otherwise.
_CLASSIC_NAMES = {"FrameType": "ImageType", "FrameAcquisitionNumber": "AcquisitionNumber"}
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def is_multiframe(header: pydicom.Dataset) -> bool:
    """Whether the object holds frames instead of one image."""
    return str(header.get("SOPClassUID", "")) in ENHANCED_CT or frame_count(header) > 1


def frame_count(header: pydicom.Dataset) -> int:
    """NumberOfFrames, 1 where it is missing; 0 or less where it is nonsense."""
    value = header.get("NumberOfFrames")
    try:
        return 1 if value is None or value == "" else int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def frame_headers(header: pydicom.Dataset, label: str) -> list[pydicom.Dataset]:
    """One classic header a frame, in the order of the frames; they share what is common.

    Raises:
        NotCTError: for a multi-frame object without functional groups.
        DamagedFileError: if the functional groups do not fit the number of frames.
    """
    count = frame_count(header)
    per_frame = _items(header, "PerFrameFunctionalGroupsSequence", label)
    if not per_frame:
        raise NotCTError(
            f"{label}: a multi-frame object (NumberOfFrames {header.get('NumberOfFrames')}) without functional groups says "
            "nothing of the place of its frames. Convert it to Enhanced CT or to one file a slice with the tool that made it."
        )
    if count != len(per_frame):
        raise DamagedFileError(
            f"{label}: NumberOfFrames is {header.get('NumberOfFrames')}, but PerFrameFunctionalGroupsSequence describes "
            f"{len(per_frame)} frames: the header is damaged. Get the file anew from its archive."
        )
    shared = _items(header, "SharedFunctionalGroupsSequence", label)
    base = pydicom.Dataset()
    base.update({element.tag: element for element in header if element.keyword not in (*_GROUPS, "NumberOfFrames")})
    for item in shared[:1]:
        _lift(item, base, label)
    out = []
    for k, item in enumerate(per_frame):
        frame = pydicom.Dataset()
        frame.update(base)
        _lift(item, frame, label)
        _put(frame, "ReferencedFrameNumber", str(k + 1))
        _put(frame, "InstanceNumber", str(k + 1))
        _add_classic_exposure(frame)
        frame.file_meta = header.file_meta if hasattr(header, "file_meta") else pydicom.dataset.FileMetaDataset()
        out.append(frame)
    return out


def _items(header: pydicom.Dataset, name: str, label: str) -> Sequence[pydicom.Dataset]:
    if name not in header:
        return []
    value = header[name].value
    if not isinstance(value, pydicom.Sequence):
        raise DamagedFileError(f"{label}: {name} is no sequence of items: the header is damaged.")
    return value


def _lift(groups: pydicom.Dataset, frame: pydicom.Dataset, label: str) -> None:
    for macro in _MACROS:
        for item in _items(groups, macro, label)[:1]:
            for element in item:
                name = _CLASSIC_NAMES.get(element.keyword)
                if name is None:
                    frame[element.tag] = element
                else:
                    _put(frame, name, element.value)


def _put(frame: pydicom.Dataset, name: str, value: Any) -> None:
    """Sets an element anew: assigning to an attribute would change the element that all frames share."""
    tag = tag_for_keyword(name)
    assert tag is not None
    frame.add_new(tag, dictionary_VR(tag), value)


def _add_classic_exposure(frame: pydicom.Dataset) -> None:
    """CT Exposure macro (PS3.3 C.8.15.3.8) in the units of the classic CT image (C.8.2.1)."""
    for enhanced, classic, factor in (
        ("ExposureInmAs", "ExposureInuAs", 1000.0),
        ("ExposureTimeInms", "ExposureTime", 1.0),
        ("XRayTubeCurrentInmA", "XRayTubeCurrent", 1.0),
    ):
        value: Any = frame.get(enhanced)
        if isinstance(value, float | int) and classic not in frame and 0 <= value * factor < 2**31:
            _put(frame, classic, str(round(value * factor)))
