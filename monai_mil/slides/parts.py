"""Which files make up one slide: the formats that spread it over several."""

from __future__ import annotations

import configparser
from pathlib import Path

from monai_mil.errors import SlideReadError

_DICOM_MAGIC_AT = 128
_KEY_FILE_BYTES = 1 << 16


def slide_files(path: str | Path) -> tuple[Path, ...]:
    """Every file whose bytes make up the slide at ``path``, sorted.

    One file, but for an MRXS (its folder beside it), a Hamamatsu VMS or VMU (the images that its key file names) and
    DICOM (all instances of the series in the folder).

    Raises:
        SlideReadError: there is no such file or folder.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise SlideReadError(f"slide '{path}': a link to '{path.readlink()}', which is not there; mend or remove it")
    if not path.exists():
        raise SlideReadError(f"slide '{path}': no such file; check the path")
    if path.is_dir():
        return tuple(sorted(file for file in path.iterdir() if file.is_file() and is_dicom(file))) or (path,)
    beside = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and beside.is_dir():  # OpenSlide tells the format by this name, too
        return (path, *sorted(file for file in beside.iterdir() if file.is_file()))
    if is_dicom(path):
        return _instances(path)
    return tuple(sorted({path, *_named_by(path)}))


def dicom_slide_in(folder: Path) -> Path:
    """A file of the one DICOM slide that the folder holds.

    Raises:
        SlideReadError: it holds none, or several; names them.
    """
    series: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_dicom(file):
            series.setdefault(_series_uid(file), file)
    if len(series) == 1:
        return next(iter(series.values()))
    if not series:
        raise SlideReadError(f"slide '{folder}': is a folder, of no DICOM slide; name the slide's file")
    raise SlideReadError(
        f"slide '{folder}': a folder of {len(series)} DICOM series; name a file of one: "
        + ", ".join(file.name for file in list(series.values())[:4])
    )


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content."""
    with path.open("rb") as file:
        file.seek(_DICOM_MAGIC_AT)
        return file.read(4) == b"DICM"


def _instances(path: Path) -> tuple[Path, ...]:
    """The DICOM files beside ``path`` that are of its series."""
    series = _series_uid(path)
    others = (file for file in path.parent.iterdir() if file.is_file() and file != path and is_dicom(file))
    return tuple(sorted([path, *(file for file in others if series and _series_uid(file) == series)]))


def _series_uid(path: Path) -> str:
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"], force=True)
        return str(header.get("SeriesInstanceUID", ""))
    except Exception:  # a damaged header belongs to no series; whoever opens the slide says so
        return ""


def _named_by(path: Path) -> list[Path]:
    """Files beside a Hamamatsu key file that it names."""
    with path.open("rb") as file:
        head = file.read(_KEY_FILE_BYTES)
    if b"[Virtual Microscope Specimen]" not in head and b"[Uncompressed Virtual Microscope Specimen]" not in head:
        return []
    keys = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        keys.read_string(head.decode("utf-8", "replace"))
    except configparser.Error:
        return []
    named = (value for section in keys.sections() for value in keys[section].values())
    return [path.parent / name for name in named if name and (path.parent / name).is_file()]
