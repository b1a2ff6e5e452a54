"""Focal planes of the vendors' files that OpenSlide reads, which shows one of them and does not say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_NDPI_OFFSET = 65424
_MIRAX = "mirax.HIERARCHICAL.HIER_"


def hidden_planes(path: Path, properties: Mapping[str, str]) -> tuple[str, ...]:
    """The remark that a slide has further focal planes than the one in focus, if it has.

    Args:
        path: the slide's file.
        properties: OpenSlide's.
    """
    vendor = properties.get("openslide.vendor")
    planes = 1
    if vendor == "mirax":
        planes = _of_mirax(properties)
    elif vendor == "hamamatsu" and path.suffix.lower() == ".ndpi":
        planes = _of_ndpi(path)
    if planes < 2:
        return ()
    return (
        f"slide '{path}': holds {planes} focal planes, of which OpenSlide reads the one that the scanner calls its "
        "focus; to take another, export it to a file of its own",
    )


def _of_mirax(properties: Mapping[str, str]) -> int:
    for name, value in properties.items():
        if name.startswith(_MIRAX) and name.endswith("_NAME") and value == "Microscope focus level":
            count = properties.get(name.removesuffix("NAME") + "COUNT", "")
            return int(count) if count.isdecimal() else 1
    return 1


def _of_ndpi(path: Path) -> int:
    """Distinct distances from the focus among the pages of the slide itself, which are as large as the first."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page.aspage() for page in tiff.pages]
    except Exception:  # tifffile raises whatever its parser meets, and OpenSlide has read the slide
        return 1
    return len({page.tags.valueof(_NDPI_OFFSET, 0) for page in pages if page.shape == pages[0].shape})
