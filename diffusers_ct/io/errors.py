"""Why a file could not be read. Every message names the file or folder and the defect, and no patient."""


class CTReadError(ValueError):
    """Base of all errors of reading: the file is not what it should be, or not what this package can use."""


class DamagedFileError(CTReadError):
    """The file is cut off, contradicts itself or cannot be decoded."""


class NotCTError(CTReadError):
    """The file is sound but no CT image in Hounsfield units: another modality, a localizer, a map."""


class GeometryError(CTReadError):
    """The slices do not make a regular volume; the message has the numbers."""


class SeveralSeriesError(CTReadError):
    """The folder holds more than one series; the message lists them."""


class UnsafeArchiveError(CTReadError):
    """The zip or tar file is made to do harm (paths outside, far more data than it may hold) and is not read."""
