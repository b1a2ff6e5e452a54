from .depth import Depth
from .dicom import as_uid
from .find import FoundScan, ScanSearch, find_scans, search_scans
from .frame import LPS_TO_RAS, ScanFrame
from .load import load_scan
from .lung import lung_mask
from .lung_field import LungField
from .orientation import ORIENTATION, oriented
from .parts import files_touched, scan_files
from .remarks import gravest_first, gravity
from .resampling import resample
from .scan import Scan
from .series import SeriesSummary, list_series
from .slices import fit_statistics, prepare_slices
from .study import Study, StudySeries, read_study
from .truth import find_scan_truth, read_scan_truth
from .turn import Turn
from .units import fits_values, has_doubtful_units
from .volume import ITK_SUFFIXES, volume_scan
from .windows import PRESET_NAMES, SlicePreset, Window, find_preset, same_but_statistics, slice_preset

__all__ = [
    "ITK_SUFFIXES",
    "LPS_TO_RAS",
    "ORIENTATION",
    "PRESET_NAMES",
    "Depth",
    "FoundScan",
    "LungField",
    "Scan",
    "ScanFrame",
    "ScanSearch",
    "SeriesSummary",
    "SlicePreset",
    "Study",
    "StudySeries",
    "Turn",
    "Window",
    "as_uid",
    "files_touched",
    "find_preset",
    "find_scan_truth",
    "find_scans",
    "fit_statistics",
    "fits_values",
    "gravest_first",
    "gravity",
    "has_doubtful_units",
    "list_series",
    "load_scan",
    "lung_mask",
    "oriented",
    "prepare_slices",
    "read_scan_truth",
    "read_study",
    "resample",
    "same_but_statistics",
    "scan_files",
    "search_scans",
    "slice_preset",
    "volume_scan",
]
