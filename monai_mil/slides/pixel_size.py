"""The pixel size of a slide, from whatever its file and its vendor wrote about it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping

FINEST_RESOLUTION_TAG, COARSEST_RESOLUTION_TAG = 0.05, 5.0
"""Micrometres per level-0 pixel beyond which resolution tags are a screen's or a printer's, not a scanner's."""

_INCH = 25400.0
_METRES = {
    "Y": 1e24,
    "Z": 1e21,
    "E": 1e18,
    "P": 1e15,
    "T": 1e12,
    "G": 1e9,
    "M": 1e6,
    "k": 1e3,
    "h": 1e2,
    "da": 1e1,
    "": 1.0,
    "d": 1e-1,
    "c": 1e-2,
    "m": 1e-3,
    "µ": 1e-6,
    "u": 1e-6,
    "n": 1e-9,
    "p": 1e-12,
    "f": 1e-15,
    "a": 1e-18,
    "z": 1e-21,
    "y": 1e-24,
}
_MICROMETRES = {f"{prefix}m": metres * 1e6 for prefix, metres in _METRES.items()} | {
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "Å": 1e-4,
    "thou": _INCH / 1000,
    "li": _INCH / 12,
    "in": _INCH,
    "ft": _INCH * 12,
    "yd": _INCH * 36,
    "mi": _INCH * 63360,
    "pt": _INCH / 72,
    "ua": 1.495978707e17,
    "ly": 9.4607304725808e21,
    "pc": 3.0856775814913673e22,
}
"""Micrometres of every unit of length that OME knows, and of what vendors write."""


def micrometres(text: str, unit: str = "µm") -> float | None:
    """A positive length in micrometres, or None where the text is none.

    Args:
        text: a number, with a decimal point or comma, and perhaps a unit behind it.
        unit: of a number that has none behind it.

    Examples:
        >>> from monai_mil.slides.pixel_size import micrometres
        >>> micrometres("0,25"), micrometres("250 nm"), micrometres("0")
        (0.25, 0.25, None)
    """
    found = re.fullmatch(r"\s*([+-]?\d*[.,]?\d+(?:[.,](?!\d))?(?:[eE][+-]?\d+)?)\s*(\S*(?: \S+)?)\s*", text)
    if found is None:
        return None
    number, written = found.groups()
    scale = _MICROMETRES.get(_normal(written or unit))
    value = math.nan if scale is None else float(number.replace(",", ".").rstrip(".") or "nan") * scale
    return value if value > 0 and math.isfinite(value) else None


def _normal(unit: str) -> str:
    return unit.replace("\u03bc", "µ").replace("\u212b", "Å")


def pair(x: str, y: str, unit_x: str = "µm", unit_y: str = "µm") -> tuple[float, float] | None:
    """Two lengths in micrometres, or None where one of the texts is none."""
    first, second = micrometres(x, unit_x), micrometres(y, unit_y)
    return None if first is None or second is None else (first, second)


def plausible(mpp: tuple[float, float] | None) -> tuple[float, float] | None:
    """A pixel size told by resolution tags, or None where no scanner makes such pixels."""
    if mpp is None or min(mpp) < FINEST_RESOLUTION_TAG or max(mpp) > COARSEST_RESOLUTION_TAG:
        return None
    return mpp


def from_resolution(x: float, y: float, unit: int | str) -> tuple[float, float] | None:
    """Micrometres per pixel of TIFF's resolution tags; None where they are missing or impossible.

    Args:
        x: pixels per unit.
        y: pixels per unit.
        unit: the tag ResolutionUnit, 2 or ``"inch"``, 3 or ``"centimeter"``.
    """
    length = {2: _INCH, "inch": _INCH, 3: 1e4, "centimeter": 1e4}.get(unit)
    if length is None or not (0 < x < math.inf and 0 < y < math.inf):
        return None
    return plausible((length / x, length / y))


def ome_pixels(xml: str, image: int = 0) -> dict[str, str]:
    """The attributes of the ``Pixels`` element of an image in OME-XML."""
    elements = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", html.unescape(xml))
    if not 0 <= image < len(elements):
        return {}
    return {name: value for name, _, value in re.findall(r"(\w+)\s*=\s*([\"'])(.*?)\2", elements[image])}


def from_ome(xml: str, image: int = 0) -> tuple[float, float] | None:
    """Micrometres per pixel of an image in OME-XML; None where it says none, or in pixels only."""
    attributes = ome_pixels(xml, image)
    x, y = (attributes.get(f"PhysicalSize{axis}", "") for axis in "XY")
    return pair(x, y, *(attributes.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XY"))


def from_scn(xml: str, size: tuple[int, int]) -> tuple[float, float] | None:
    """Micrometres per pixel of a Leica SCN: its XML says how many nanometres the whole canvas of ``size`` px is."""
    found = re.search(r"<collection\b[^>]*>", xml)
    sides = dict(re.findall(r'\b(size[XY])="(\d+)"', found[0])) if found else {}
    if len(sides) < 2 or not all(map(int, sides.values())):
        return None
    return plausible((int(sides["sizeX"]) / 1000 / size[0], int(sides["sizeY"]) / 1000 / size[1]))


def from_properties(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Micrometres per pixel from properties under OpenSlide's names: its own, the vendor's, then resolution tags."""
    for x, y in (
        ("openslide.mpp-x", "openslide.mpp-y"),
        ("aperio.MPP", "aperio.MPP"),
        (
            "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
            "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
        ),
        ("ventana.ScanRes", "ventana.ScanRes"),
    ):
        mpp = pair(properties.get(x, ""), properties.get(y, ""))
        if mpp is not None:
            return mpp
    try:
        x_tag, y_tag = (float(properties[f"tiff.{axis}Resolution"]) for axis in "XY")
    except (KeyError, ValueError):
        return None
    return from_resolution(x_tag, y_tag, properties.get("tiff.ResolutionUnit", "inch"))
