"""What lies in a folder: slides or scans to work on, or bags that are ready."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from monai_mil.cohorts.slide_search import named_slides
from monai_mil.errors import CohortError
from monai_mil.names import composed, is_shortened, is_there
from monai_mil.scans import FoundScan, ScanSearch, search_scans
from monai_mil.sealed import open_hdf5

logger = logging.getLogger(__name__)

_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm", ".dicom", ".ima")


Place = str | os.PathLike[str]


def slide_datalist(places: Place | Sequence[Place]) -> list[dict[str, str]]:
    """MONAI data list (``image``, ``slide_id``) of slides and of the slides of folders (``find_slides``).

    Args:
        places: a folder, a slide, or several of them.

    Raises:
        CohortError: there is no slide, or two have one name.
    """
    first: dict[str, Path] = {}
    for name, path in named_slides(_listed(places)):
        other = first.setdefault(name, path)
        if other != path:
            raise CohortError(f"slides '{other}' and '{path}' have one name, '{name}'; rename one of them")
    return [{"image": str(path), "slide_id": name} for name, path in first.items()]


def scan_datalist(places: Place | Sequence[Place]) -> list[dict[str, str]]:
    """MONAI data list (``image``, ``scan_id``) of the scans below folders, and of series folders and volume files.

    A scan is named by where it lies below the folder, so that a scan that is added renames no other: the series folder
    ``patient/study/series`` is ``patient_study_series``. Where a series has to be named, because its slices lie in
    several folders with other scans among them, all items have a ``series_uid`` (or ``""``). Masks and volumes made of
    a series that is there are left out and logged; what may hold somebody's scan and cannot be read stands in the list
    and fails when it is read (see ``scans.search_scans``).

    Args:
        places: a folder, a scan, or several of them; a scan that is met twice counts once.

    Raises:
        CohortError: there is no scan, or two get one name.
    """
    found = {scan: place for place in map(Path, _listed(places)) for scan in _scans_at(place)}
    with_series = any(scan.series_uid for scan in found)
    first: dict[str, FoundScan] = {}
    for scan, place in found.items():
        name = _scan_id(scan.path, place) + (f"_{scan.series_uid}" if scan.series_uid else "")
        if first.setdefault(name, scan) != scan:
            raise CohortError(
                f"scans '{first[name].path}' and '{scan.path}' get one name, '{name}'; rename one of them"
            )
    return [
        {"image": str(scan.path), "scan_id": name} | ({"series_uid": scan.series_uid or ""} if with_series else {})
        for name, scan in first.items()
    ]


def _listed(places: Place | Sequence[Place]) -> list[Place]:
    return [places] if isinstance(places, (str, os.PathLike)) else list(places)


def _scans_at(place: Path) -> tuple[FoundScan, ...]:
    """The scans of one folder, or the scan itself."""
    search = search_scans(place) if is_there(place) and place.is_dir() else ScanSearch((FoundScan(place),), ())
    for sentence in search.left_out:
        logger.warning("%s", sentence)
    if not search.scans:
        beside = f"; {'; '.join(search.left_out)}" if search.left_out else ""
        raise CohortError(f"folder '{place}': no scans (DICOM series, NIfTI, MHA or NRRD files){beside}")
    return search.scans


def _scan_id(path: Path, folder: Path) -> str:
    """The parts of the path below ``folder`` joined, or the path's own name; without a volume file's suffix."""
    below = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    name = composed("_".join(below) or path.resolve().name)
    suffix = next((suffix for suffix in _VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] if is_there(path) and path.is_file() else name


def bag_datalist(folder: str | os.PathLike[str], id_column: str = "slide_id") -> list[dict[str, str]]:
    """MONAI data list (``image``, and the name under ``id_column``) of the bags of a folder.

    Args:
        folder: holds the bags.
        id_column: ``slide_id``, or ``scan_id`` where the bags are scans'.

    Raises:
        CohortError: there is no such folder, or no bag in it.
    """
    folder = Path(folder)
    if not (is_there(folder) and folder.is_dir()):
        raise CohortError(f"'{folder}' is no folder; name the folder that holds the bags")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    bags = [path for path in files if path.suffix.lower() == ".h5"]
    stems = {path.stem for path in bags}
    found = sorted(bags + [path for path in files if path.suffix.lower() == ".pt" and path.stem not in stems])
    if not found:
        raise CohortError(f"folder '{folder}': no bags (files ending with .h5, or CLAM's .pt)")
    return [{"image": str(path), id_column: _name_in(path)} for path in found]


def _name_in(bag: Path) -> str:
    """What the slide or scan of a bag is called: as its file, unless that had to be shortened."""
    if not is_shortened(bag.stem):
        return composed(bag.stem)
    try:
        with open_hdf5(bag) as file:
            return str(file.attrs.get("monai_mil.slide_id", bag.stem))
    except (OSError, ValueError):  # a damaged bag is reported by whoever reads it
        return bag.stem
