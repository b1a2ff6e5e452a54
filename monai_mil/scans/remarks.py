"""How grave a remark is: values that may be wrong come before places, places before what is only odd."""

from __future__ import annotations

import re
from collections.abc import Iterable

_OF_VALUES = re.compile(r"Hounsfield|no CT measures|may be tissue|put right|BitsStored|RescaleType", re.IGNORECASE)
_OF_PLACES = re.compile(
    r"orientation|position|PixelSpacing|distance|missing|lead nowhere|grid|beside one straight line|resampled"
    r"|acquisition|thickness|left/right|axial|tissue between|\bturned\b|form was taken|single-frame file|\bmm\b",
    re.IGNORECASE,
)
_OF_CONTENT = re.compile(r"left out|ignored|is read in its place|no scans|Secondary Capture|masks", re.IGNORECASE)


def gravity(remark: str) -> int:
    """0 of a remark on values, 1 on geometry, 2 on what was left out, 3 of any other.

    Examples:
        >>> from monai_mil.scans import gravity
        >>> gravity("no PixelSpacing: pixels taken as 1 x 1 mm"), gravity("3 files that are not DICOM ignored")
        (1, 2)
    """
    return next((level for level, kind in enumerate((_OF_VALUES, _OF_PLACES, _OF_CONTENT)) if kind.search(remark)), 3)


def gravest_first(remarks: Iterable[str]) -> tuple[str, ...]:
    """Remarks in the order of their gravity, each once."""
    return tuple(sorted(dict.fromkeys(remarks), key=gravity))
