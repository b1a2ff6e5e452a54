from .frame import ScanFrame
from .scan import Scan
from .slices import fit_statistics, prepare_slices
from .windows import PRESET_NAMES, SlicePreset, Window, slice_preset

__all__ = [
    "PRESET_NAMES",
    "Scan",
    "ScanFrame",
    "SlicePreset",
    "Window",
    "fit_statistics",
    "prepare_slices",
    "slice_preset",
]
