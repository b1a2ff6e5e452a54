"""The errors a user can cause; each message names the file, what is wrong and what to do."""


class MonaiMILError(Exception):
    """Base of every error that is about the user's input rather than about this package."""


class SlideReadError(MonaiMILError):
    """A slide cannot be opened or one of its tiles cannot be decoded."""


class ScanReadError(MonaiMILError):
    """A CT scan cannot be read as one ordered stack of slices."""


class EncoderError(MonaiMILError):
    """An encoder is unknown, lacks a package or its weights cannot be loaded."""


class BagError(MonaiMILError):
    """A bag file is missing, damaged, or does not fit what reads it."""


class CohortError(MonaiMILError):
    """A cohort table or datalist is invalid; names file, row and column."""


class SettingsError(MonaiMILError):
    """Settings that fit no slide; names the setting and what it may be."""


class OutputError(MonaiMILError):
    """A result cannot be written: disk full, no permission."""
