from .algorithm import Algorithm
from .ann import write_annotations
from .check import check_highdicom
from .finding import Finding
from .pm import write_parametric_map
from .sc import write_overlay
from .seg import write_segmentation
from .source import DicomSource, scan_source, slide_source
from .sr import write_report
from .terms import Term, Terms

__all__ = [
    "Algorithm",
    "DicomSource",
    "Finding",
    "Term",
    "Terms",
    "check_highdicom",
    "scan_source",
    "slide_source",
    "write_annotations",
    "write_overlay",
    "write_parametric_map",
    "write_report",
    "write_segmentation",
]
