"""Which library turns a slide's bytes into pixels: JPEG decoders differ in single grey levels."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from monai_mil.slides.slide import Slide

_DISTRIBUTIONS = {
    "imagecodecs": ("imagecodecs",),
    "cucim": ("cucim-cu12", "cucim-cu13"),
    "openslide": ("openslide-bin", "openslide-python"),
    "tifffile": ("tifffile",),
    "pydicom": ("imagecodecs",),
}


def decoder_of(slide: Slide, device: str = "cpu") -> str:
    """The library, with its version, that decodes this slide's tiles for ``device``.

    Stored tiles are decoded by imagecodecs for the CPU; for a GPU ``slide.reader`` decodes them there if it can.
    """
    on_cpu = device.partition(":")[0] == "cpu"
    library = "imagecodecs" if slide.tiff is not None and on_cpu else slide.reader
    release = next(filter(None, map(_release, _DISTRIBUTIONS[library])), "")
    return f"{library} {release}".strip() + ("" if on_cpu else f" for {device.partition(':')[0]}")


def _release(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
