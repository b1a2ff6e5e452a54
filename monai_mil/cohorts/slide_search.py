"""The slides below a folder, by what the files are, and what each is called."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from monai_mil.errors import CohortError
from monai_mil.folders import walk_files
from monai_mil.names import composed, is_there
from monai_mil.slides import slide_id

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".qptiff", ".btf", ".tf2", ".tf8", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu",
    ".svslide", ".czi",
)  # fmt: skip
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DICOM_AT, _DICOM = 128, b"DICM"


def find_slides(folder: str | os.PathLike[str]) -> list[Path]:
    """The slides of a folder and its sub-folders, sorted.

    Files are told by their suffix in any case, those without one and DICOM by their content. A folder that holds one
    DICOM slide, however many files it is stored in, is one slide; of several in one folder the first file of each
    stands for it. Links to folders are followed. A link that leads nowhere and a folder that cannot be listed count as
    slides too, so that they are reported and not passed over.

    Raises:
        CohortError: there is no such folder, or no slide in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CohortError(f"'{folder}' is no folder; name the folder that holds the slides")
    found: list[Path] = []
    walk = walk_files(folder, lambda error: found.append(Path(error.filename)), found.append)
    for parent, paths in walk:
        found.extend(_slides_in(parent, [path for path in paths if not path.name.startswith(".")]))
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        suffixes = ", ".join(SLIDE_SUFFIXES)
        raise CohortError(f"folder '{folder}': no slides (files ending with {suffixes}; DICOM; TIFF without an ending)")
    return sorted(found)


def named_slides(places: Sequence[str | os.PathLike[str]]) -> list[tuple[str, Path]]:
    """Names and paths of slides given one by one or by folders, in order; a slide that is met twice counts once.

    Slides of one name in several folders are named by where they lie below the folder given, or below what the folders
    given have in common: ``batch1/HE_1.svs`` is ``batch1_HE_1``.

    Raises:
        CohortError: a folder holds no slide.
    """
    roots = [path for path in map(Path, places) if is_there(path) and path.is_dir()]
    root = Path(os.path.commonpath([path.absolute() for path in roots])) if roots else None
    found: dict[Path, bool] = {}
    for place in map(Path, places):
        for path in find_slides(place) if place in roots else [place]:
            found.setdefault(path, place in roots)
    names = {path: composed(slide_id(path)) for path in found}
    counts = Counter(names.values())
    return [
        (_by_place(path, root) if in_folder and root and counts[names[path]] > 1 else names[path], path)
        for path, in_folder in found.items()
    ]


def _by_place(path: Path, root: Path) -> str:
    below = path.parent.absolute()
    parts = below.relative_to(root).parts if below.is_relative_to(root) else below.parts[1:]
    return composed("_".join((*parts, slide_id(path))))


def _slides_in(folder: Path, paths: list[Path]) -> list[Path]:
    slides = [path for path in paths if path.suffix.lower() in SLIDE_SUFFIXES]
    series: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if path in slides or not _may_hide_a_slide(path):
            continue
        with path.open("rb") as file:
            head = file.read(_DICOM_AT + len(_DICOM))
        if head[:4] in _TIFF:
            slides.append(path)
        elif head[_DICOM_AT:] == _DICOM and (uid := _slide_series(path)) is not None:
            series[uid].append(path)
    if len(series) == 1 and not slides and len(next(iter(series.values()))) > 1:
        return [folder]
    return slides + [files[0] for files in series.values()]


def _may_hide_a_slide(path: Path) -> bool:
    """Whether only its content can tell: no suffix, that of DICOM, or a number, as behind the last dot of a UID."""
    suffix = path.suffix.lower()
    return suffix in ("", ".dcm", ".dicom", ".ima") or suffix[1:].isdigit()


def _slide_series(path: Path) -> str | None:
    """SeriesInstanceUID of a DICOM slide; None of anything else. What is damaged may be one, and fails by name."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"])
        return str(header.get("SeriesInstanceUID", path)) if header.get("Modality") == "SM" else None
    except Exception:  # pydicom raises whatever its parser meets
        return str(path)
