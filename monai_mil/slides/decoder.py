"""How a slide's bytes become pixels, and which library does it: decoders of JPEG do not all give the same."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from monai_mil.slides.slide import Slide

Decoder = Literal["exact", "scaled", "cucim-device"]
"""What may be chosen; pixels of one differ from those of the others, so that it belongs to what a bag is.

- ``"exact"``: every stored tile at its full size, on the CPU; all libraries that do this give the same pixels.
- ``"scaled"``: JPEG tiles of which 1/2 or less is wanted come out of the decoder at 1/2 or 1/4 of their size.
- ``"cucim-device"``: JPEG tiles on an NVIDIA GPU by cuCIM, which interpolates colours differently.
"""

_DISTRIBUTIONS = {
    "simplejpeg": ("simplejpeg",),
    "imagecodecs": ("imagecodecs",),
    "cucim": ("cucim-cu12", "cucim-cu13"),
    "openslide": ("openslide-bin", "openslide-python"),
    "tifffile": ("tifffile",),
    "pydicom": ("imagecodecs",),
}


def decoder_of(slide: Slide, decoder: Decoder = "exact") -> str:
    """The library, with its version, that decodes this slide's tiles."""
    if decoder == "cucim-device":
        return f"{_with_release('cucim')} for cuda"
    if slide.tiff is None:
        return _with_release(slide.reader)
    return _with_release("imagecodecs" if slide.tiff.plain_jpeg(0) is None else "simplejpeg")


def recorded_decoder(decoder: str | None, library: str | None) -> str:
    """The decoder of a bag that says it or, made before there was a choice, only the ``library``."""
    if decoder is not None:
        return decoder
    return "cucim-device" if library is not None and library.startswith("cucim") and " for " in library else "exact"


def _with_release(library: str) -> str:
    return f"{library} {next(filter(None, map(_release, _DISTRIBUTIONS[library])), '')}".strip()


def _release(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
