"""What files are that hold no scan, and what to do with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from monai_mil.scans.volume import volume_suffix

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".iso")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".z")
_PAIRS = (".hdr", ".img")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
_OF_PROGRAMS = {
    ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".md", ".html", ".h5", ".pt",
    ".npz", ".py", ".sh", ".ipynb", ".lock",
}  # fmt: skip
_MOST_SHOWN = 5


def may_hold_a_scan(path: Path) -> bool:
    """Whether a file that is no scan may well hold one: archives, packed files, and the pairs of Analyze."""
    name = path.name.lower()
    if name.endswith(".img") and path.with_suffix(".hdr").exists():
        return False  # its header stands for the pair
    return name.endswith((*_ARCHIVES, *_PACKED, *_PAIRS)) and Path(path.stem).suffix.lower() not in _OF_PROGRAMS


def is_of_a_program(path: Path) -> bool:
    """Whether a file is a table, a setting or a result, such as lie in folders of their own beside patients'."""
    return path.suffix.lower() in _OF_PROGRAMS


def advice_on(path: Path) -> str | None:
    """What a file that cannot be read is and what to do with it, or None where its name does not say."""
    name = path.name.lower()
    if name.endswith(_ARCHIVES):
        return "an archive: unpack it"
    if name.endswith(_PACKED):
        return "a packed file: unpack it"
    if name.endswith(_PAIRS):
        return "a pair of files of Analyze or NIfTI: write it as .nii.gz, with its orientation"
    if name.endswith(_PICTURES):
        return "a picture without Hounsfield units: export DICOM"
    if volume_suffix(path) is not None:
        return "a volume: name the file itself"
    return None


def describe_kinds(paths: Iterable[Path]) -> str:
    """The kinds of files that are no DICOM: how many of each ending, and what to do with those that may hold a scan."""
    kinds = Counter((_ending(path), advice_on(path)) for path in paths)
    shown = [
        f"{count} {ending or 'without an ending'}{f' ({advice})' if advice else ''}"
        for (ending, advice), count in kinds.most_common(_MOST_SHOWN)
    ]
    return ", ".join(shown) + (" and others" if len(kinds) > _MOST_SHOWN else "")


def _ending(path: Path) -> str:
    ending = "".join(path.suffixes[-2:]) if path.suffix.lower() in _PACKED else path.suffix
    return ending.lower() if len(ending) <= 8 and ending[1:2].isalpha() else ""
