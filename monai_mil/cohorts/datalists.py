"""What lies in a folder: slides or scans to work on, or bags that are ready."""

from __future__ import annotations

import os
from pathlib import Path

from monai_mil.errors import CohortError
from monai_mil.scans import find_scans
from monai_mil.slides import slide_id

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")
_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm", ".dicom", ".ima")


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


def scan_datalist(place: str | os.PathLike[str]) -> list[dict[str, str]]:
    """MONAI data list (``image``, ``scan_id``) of the scans below a folder, or of one series folder or volume file.

    A scan is named by where it lies below the folder, so that a scan that is added renames no other: the series folder
    ``patient/study/series`` is ``patient_study_series``.

    Raises:
        CohortError: there is no scan, or two get one name.
    """
    place = Path(place)
    scans = find_scans(place) if place.is_dir() else [place]
    if not scans:
        raise CohortError(f"folder '{place}': no scans (DICOM series, NIfTI, MHA or NRRD files)")
    first: dict[str, Path] = {}
    for path in scans:
        name = _scan_id(path, place)
        if first.setdefault(name, path) != path:
            raise CohortError(f"scans '{first[name]}' and '{path}' get one name, '{name}'; rename one of them")
    return [{"image": str(path), "scan_id": name} for name, path in first.items()]


def _scan_id(path: Path, folder: Path) -> str:
    """The parts of the path below ``folder`` joined, or the path's own name; without a volume file's suffix."""
    below = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    name = "_".join(below) or path.resolve().name
    suffix = next((suffix for suffix in _VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] if path.is_file() else name


def bag_datalist(folder: str | os.PathLike[str], id_column: str = "slide_id") -> list[dict[str, str]]:
    """MONAI data list (``image``, and the name under ``id_column``) of the bags of a folder.

    Args:
        folder: holds the bags.
        id_column: ``slide_id``, or ``scan_id`` where the bags are scans'.

    Raises:
        CohortError: there is no such folder, or no bag in it.
    """
    return [{"image": str(path), id_column: path.stem} for path in _listed(folder, (".h5",), "bags", recursive=False)]


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
