"""The errors a user can cause; each message names the file, what is wrong and what to do.

``status`` says in two words, for tables and programs, what became of a case that ended so.
"""

from typing import ClassVar


class MonaiMILError(Exception):
    """Base of every error that is about the user's input rather than about this package."""

    status: ClassVar[str] = "failed"


class SlideReadError(MonaiMILError):
    """A slide cannot be opened or one of its tiles cannot be decoded."""

    status = "unreadable"


class TooCoarseError(SlideReadError):
    """A slide without the detail that its tiles are to show, a thumbnail for example."""

    status = "too coarse"


class ScanReadError(MonaiMILError):
    """A CT scan cannot be read as one ordered stack of slices."""

    status = "unreadable"


class NoLungsError(ScanReadError):
    """A CT scan in which no lungs were found, asked for what is inside them."""

    status = "no lungs"


class EncoderError(MonaiMILError):
    """An encoder is unknown, lacks a package, its weights cannot be loaded, or what it gives cannot be used."""

    status = "not encoded"


class BagError(MonaiMILError):
    """A bag file is missing, damaged, or does not fit what reads it."""

    status = "unusable bag"


class DamagedBagError(BagError):
    """A bag, or another HDF5 file of ours, that cannot be read or is not what was written."""


class NoTissueError(BagError):
    """A slide, or the bag of one, without a single tile of tissue."""

    status = "no tissue"


class CohortError(MonaiMILError):
    """A cohort table or datalist is invalid; names file, row and column."""

    status = "invalid cohort"


class DicomError(MonaiMILError):
    """No DICOM objects can be made of a case: it is not DICOM, or lacks what they must refer to."""

    status = "no DICOM objects"


class AnnotationError(MonaiMILError):
    """A slide's or scan's ground truth, a mask or polygons, is missing, damaged or of a kind that is not known."""

    status = "no ground truth"


class SettingsError(MonaiMILError):
    """Settings that fit no slide; names the setting and what it may be."""

    status = "invalid settings"


class SetAsideError(MonaiMILError):
    """A case that took the process down with it more than once; it is tried again when somebody asks for it."""

    status = "set aside"


class OutputError(MonaiMILError):
    """A result cannot be written: disk full, no permission."""

    status = "not written"


class BusyError(OutputError):
    """Another run is at work in the same place; names it."""

    status = "not written"
