"""The slides and scans of a folder under the names by which clients ask for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from monai_mil.cohorts import named_slides, scan_datalist
from monai_mil.errors import CohortError
from monai_mil.names import composed

_FRESH = 30.0
"""Seconds for which a folder is taken to be as it was."""


@dataclass(frozen=True)
class StudyImage:
    """One slide or scan of the studies.

    Attributes:
        name: what MONAI Label and its clients call it, as the case is called everywhere else.
        path: its file or folder.
        reads: what it is.
        series_uid: which series of a scan's folder; None for the only one.
    """

    name: str
    path: Path
    reads: Literal["slides", "scans"]
    series_uid: str | None = None

    @property
    def aliases(self) -> set[str]:
        """What else a client may call it: the file's name, whole, without its last ending and without all."""
        return {self.path.name, self.path.stem, self.path.name.partition(".")[0]}


class StudyImages:
    """The images below a folder, its sub-folders included; looked for anew when asked for one that is not known.

    Args:
        folder: the studies.
        kinds: what the models read, ``slides`` or ``scans`` or both.

    Examples:
        >>> from monai_mil.label import StudyImages
        >>> (folder / "batch").mkdir()
        >>> (folder / "batch" / "S-1.ome.tif").touch()
        >>> images = StudyImages(folder, ["slides"])
        >>> [image.name for image in images.all()], images.find("S-1").path.name
        (['S-1'], 'S-1.ome.tif')
    """

    def __init__(self, folder: Path, kinds: Iterable[Literal["slides", "scans"]]) -> None:
        self.folder = folder
        self.kinds = sorted(set(kinds))
        self._lock = threading.Lock()
        self._found: dict[str, StudyImage] = {}
        self._looked = 0.0

    def all(self) -> list[StudyImage]:
        """The images in the order of their names."""
        with self._lock:
            if time.monotonic() - self._looked > _FRESH or not self._looked:
                self._look()
            return list(self._found.values())

    @property
    def known(self) -> list[StudyImage]:
        """The images as they were when somebody last looked."""
        return list(self._found.values())

    def refresh(self) -> None:
        """Look into the folder again."""
        with self._lock:
            self._look()

    def here(self, image: StudyImage) -> Path:
        """The path of an image, which is there when this returns."""
        return image.path

    def volume(self, image: StudyImage) -> Path:
        """Of a scan the file with all its voxels on which clients draw; its folder where it is one of slices."""
        return self.here(image)

    def at(self, path: str) -> StudyImage | None:
        """The image that lies at a path; None where none does."""
        return next((image for image in self.all() if str(image.path) == path), None)

    def find(self, name: str) -> StudyImage:
        """The image of this name; else the only one whose file is called so, with or without its ending.

        Raises:
            CohortError: there is none, or there are several.
        """
        found = self._named(name)
        if not found:
            self.refresh()
            found = self._named(name)
        if len(found) != 1:
            several = f"several images are called '{name}': " + ", ".join(sorted(image.name for image in found))
            raise CohortError(several if found else f"no image '{name}' among the studies of the server")
        return found[0]

    def _named(self, name: str) -> list[StudyImage]:
        known = {image.name: image for image in self.all()}
        said = composed(name)
        if said in known:
            return [known[said]]
        return [image for image in known.values() if said in image.aliases]

    def _look(self) -> None:
        self._found = dict(sorted(self._search().items()))
        self._looked = time.monotonic()

    def _search(self) -> dict[str, StudyImage]:
        slides = dict(reversed(_slides(self.folder)))
        found = {name: StudyImage(name, path, "slides") for name, path in slides.items() if "slides" in self.kinds}
        if "scans" in self.kinds:
            taken = {place for path in slides.values() for place in (path, *path.parents)}
            for item in _scans(self.folder):
                path, series = Path(item["image"]), item.get("series_uid") or None
                if path in taken and not _holds_series(path, set(slides.values())):
                    continue
                found.setdefault(item["scan_id"], StudyImage(item["scan_id"], path, "scans", series))
        return found


def _holds_series(folder: Path, slides: set[Path]) -> bool:
    """Whether a folder of slides holds DICOM files beside them; a folder of anything else is no scan either."""
    from pydicom.misc import is_dicom

    return any(path.is_file() and path not in slides and is_dicom(path) for path in folder.rglob("*"))


def _slides(folder: Path) -> list[tuple[str, Path]]:
    try:
        return named_slides([folder])
    except CohortError:  # none yet
        return []


def _scans(folder: Path) -> list[dict[str, str]]:
    try:
        return scan_datalist(folder)
    except CohortError:
        return []
