"""What somebody points at: a cohort table, slides or scans, or features that are ready."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_mil.cohorts import is_table
from monai_mil.errors import CohortError

_BAGS = (".h5", ".pt")


def input_settings(places: Sequence[Path], *, raw: bool = False) -> tuple[dict[str, Any], bool]:
    """The keys of a bundle's inference configs that say what is predicted, and whether it is raw slides or scans.

    Args:
        places: one cohort table; or one folder of bags; or slides, scans, and folders of them.
        raw: read the slides or scans of a table even where their bags lie beside it, in ``bags/``.

    Raises:
        CohortError: a place is not there, or a table or a folder of bags is not alone.

    Examples:
        >>> from monai_mil.runs import input_settings
        >>> (folder / "S-1.svs").touch()
        >>> settings, is_raw = input_settings([folder])
        >>> settings["dataset_dir"] == str(folder), is_raw
        (True, True)
    """
    for place in places:
        if not place.exists():
            raise CohortError(f"'{place}' is not there; name slides, scans, folders of them, or a cohort table")
    alone = [place for place in places if is_table(place) or _holds_bags(place)]
    if alone and len(places) > 1:
        raise CohortError(f"'{alone[0]}' is a cohort table or a folder of bags: name it alone")
    if not alone:
        if len(places) == 1:
            return {"dataset_dir": str(places[0].absolute())}, True
        return {"inputs": [str(place.absolute()) for place in places]}, True
    place = places[0].absolute()
    if not is_table(place):
        return {"bag_dir": str(place)}, False
    folder = place.parent
    return {"dataset_dir": str(folder), "cohort_file": str(place)}, raw or not _holds_bags(folder / "bags")


def cohort_settings(place: Path) -> dict[str, Any]:
    """The keys of a bundle's train config that say where the cohort is.

    Args:
        place: the cohort's table, or the folder that holds ``cohort.csv`` (or ``.json``) and ``bags/``.

    Raises:
        CohortError: there is no such table.
    """
    if place.is_dir():
        tables = [place / name for name in ("cohort.csv", "cohort.json") if (place / name).is_file()]
        if not tables:
            raise CohortError(f"folder '{place}' has no cohort.csv; name the folder with the table and bags/")
        place = tables[0]
    if not is_table(place) or not place.is_file():
        raise CohortError(f"'{place}' is no cohort table (.csv or .json) and no folder that holds one")
    place = place.absolute()
    return {"dataset_dir": str(place.parent), "cohort_file": str(place)}


def _holds_bags(place: Path) -> bool:
    """Whether a folder holds bags, or a folder of bags a level; never looks deeper."""
    if not place.is_dir():
        return False
    folders = [place, *(path for path in place.glob("level_*") if path.is_dir())]
    return any(path.suffix.lower() in _BAGS for folder in folders for path in folder.iterdir() if path.is_file())
