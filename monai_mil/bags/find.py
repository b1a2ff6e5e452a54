"""What lies in a folder: slides to work on, or bags that are ready."""

from __future__ import annotations

import os
from pathlib import Path

from monai_mil.errors import CohortError
from monai_mil.slides import slide_id

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")


def find_slides(folder: str | os.PathLike[str]) -> list[Path]:
    """The slides of a folder and its sub-folders, sorted, by their suffix.

    A DICOM slide is many files; name one of them, in a cohort table or by itself.

    Raises:
        CohortError: there is no such folder, or no slide in it.
    """
    return _listed(folder, SLIDE_SUFFIXES, "slides", recursive=True)


def slide_datalist(place: str | os.PathLike[str]) -> list[dict[str, str]]:
    """MONAI data list (``image``, ``slide_id``) of the slides of a folder, or of one slide.

    Raises:
        CohortError: there is no slide, or two have one name.
    """
    slides = find_slides(place) if Path(place).is_dir() else [Path(place)]
    first: dict[str, Path] = {}
    for path in slides:
        other = first.setdefault(slide_id(path), path)
        if other != path:
            raise CohortError(f"slides '{other}' and '{path}' have one name, '{slide_id(path)}'; rename one of them")
    return [{"image": str(path), "slide_id": name} for name, path in first.items()]


def bag_datalist(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """MONAI data list (``image``, ``slide_id``) of the bags of a folder.

    Raises:
        CohortError: there is no such folder, or no bag in it.
    """
    return [{"image": str(path), "slide_id": path.stem} for path in _listed(folder, (".h5",), "bags", recursive=False)]


def _listed(folder: str | os.PathLike[str], suffixes: tuple[str, ...], what: str, recursive: bool) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise CohortError(f"'{folder}' is no folder; name the folder that holds the {what}")
    inside = folder.rglob("*") if recursive else folder.glob("*")
    found = sorted(
        path for path in inside if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise CohortError(f"folder '{folder}': no {what} (files ending with {', '.join(suffixes)})")
    return found
