"""A cohort: which slides or scans there are, whose they are, what their labels are and how they are split."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_mil.cohorts.patients import patient_items
from monai_mil.errors import CohortError
from monai_mil.files import replacing
from monai_mil.names import existing, file_stem, is_there
from monai_mil.sealed import open_hdf5

SPLITS = ("train", "val", "test")
_MOST_NAMED = 10


@dataclass(frozen=True)
class CohortSlide:
    """One slide of a cohort, or one scan.

    Attributes:
        slide_id: unique name; the bag is ``<slide_id>.h5``.
        patient_id: all slides of one patient stay in one split.
        path: the slide's file or the scan's file or folder, None where only its bag exists.
        split: ``train``, ``val``, ``test``, or None where the table does not say.
        label: class index (-1: unknown), or one float for every class (NaN: unknown), or None without labels.
        row: where the table names it, for error messages.
        series_uid: which series to take where a scan's folder holds several, or None.
        mpp: micrometres per level-0 pixel of a slide, whatever its file says, or None.
        acquisition: which acquisition to take where a series has several, or None.
        fold: number of the fold of a cross-validation, or None where the table does not say.
        others: what else the table says of it, by column, so that nothing is lost when the cohort is written again.
    """

    slide_id: str
    patient_id: str
    path: Path | None = None
    split: str | None = None
    label: int | tuple[float, ...] | None = None
    row: str = ""
    series_uid: str | None = None
    mpp: float | None = None
    acquisition: str | None = None
    fold: int | None = None
    others: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Cohort:
    """Slides or scans with their labels, read by ``read_cohort``.

    Attributes:
        source: the table it was read from.
        slides: in the table's order.
        labels: names of the label columns: one for a multi-class cohort, several for a multi-label one.
        classes: names of the classes; the label columns themselves in a multi-label cohort.
        id_column: the column and data list key of the names: ``slide_id``, or ``scan_id`` of scans.
        bag_of: ``"patient"`` makes one case of all slides or scans of a patient in data lists; else each is one.
        ordered: the network takes the instances of one scan in their order: patients with several are refused.
    """

    source: Path
    slides: tuple[CohortSlide, ...]
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    id_column: str = "slide_id"
    bag_of: str = "slide"
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.slides)

    @property
    def case(self) -> str:
        """What an entry is called: ``slide`` or ``scan``."""
        return self.id_column.removesuffix("_id")

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the folds there are, sorted; none where the table has no column ``fold``."""
        return tuple(sorted({slide.fold for slide in self.slides if slide.fold is not None}))

    def datalist(
        self, split: str | None = None, bag_dir: str | os.PathLike[str] | None = None, *, check: bool = True
    ) -> list[dict[str, Any]]:
        """MONAI's data list of one split.

        Args:
            split: ``train``, ``val`` or ``test``; None for all slides.
            bag_dir: folder of the bags; None to work on the slides or scans themselves.
            check: raise if a bag or slide is missing, rather than when it is read.

        Returns:
            Dictionaries with ``image`` (path of bag, slide or scan), ``label`` (where the cohort has labels),
            ``slide_id`` or ``scan_id``, ``patient_id``, with bags of other programs ``slide_path`` where the cohort
            says it, and where raw slides or scans are asked for and the cohort names any, ``mpp`` (or 0),
            ``series_uid`` and ``acquisition`` (or ``""``). With ``bag_of`` patient: ``image``, a list of these of the
            patient's slides, ``label`` and ``patient_id``.

        Raises:
            CohortError: the split is unknown or empty, or a file is missing; names table, row and column.
        """
        chosen = [slide for slide in self.slides if split is None or slide.split == split]
        if split is not None and split not in SPLITS:
            raise CohortError(f"cohort '{self.source}': split '{split}' is none of {', '.join(SPLITS)}")
        if not chosen:
            folds = f", or give one of its folds, --fold {self.folds[0]}" if self.folds else ""
            raise CohortError(
                f"cohort '{self.source}': no {self.case} has split '{split}' in column 'split'; "
                f"fill it or use split_cohort{folds}"
            )
        embed = "embed-scans" if self.case == "scan" else "embed"
        named = [] if bag_dir is not None else self._named("series_uid", "acquisition", "mpp")
        items, missing = [], []
        for slide in chosen:
            image = _bag(Path(bag_dir), slide.slide_id) if bag_dir is not None else slide.path
            if image is None:
                raise CohortError(
                    f"cohort '{self.source}', {slide.row}, column 'path': empty; name the {self.case}'s file"
                )
            if check and not is_there(image):
                missing.append((slide, image))
                continue
            item: dict[str, Any] = {"image": str(image)}
            if slide.label is not None:
                item["label"] = slide.label if isinstance(slide.label, int) else list(slide.label)
            if bag_dir is not None and self.case == "slide" and slide.path is not None and not _is_own(image):
                item["slide_path"] = str(slide.path)
            item |= {name: getattr(slide, name) or (0.0 if name == "mpp" else "") for name in named}
            items.append(item | {self.id_column: slide.slide_id, "patient_id": slide.patient_id})
        if missing:
            first, image = missing[0]
            column, advice = (
                ("path", "correct it") if bag_dir is None else (self.id_column, f"run monai-mil {embed} first")
            )
            further = ", ".join(f"'{slide.slide_id}'" for slide, _ in missing[1:_MOST_NAMED])
            more = f"; {len(missing) - 1} more are missing: {further}" if further else ""
            more += ", ..." if len(missing) > _MOST_NAMED else ""
            raise CohortError(
                f"cohort '{self.source}', {first.row}, column '{column}': no file '{image}'; {advice}{more}"
            )
        return patient_items(self, items) if self.bag_of == "patient" else items

    def label_text(self, slide: CohortSlide) -> str:
        """The label of a slide in words, or ``unknown``."""
        cells = self._label_text(slide)
        return (
            ", ".join(cells if len(cells) == 1 else map(" ".join, zip(self.labels, cells, strict=False))) or "unknown"
        )

    def digest(self, split: str | None = None) -> str:
        """What tells the cases of a split and their labels from any others: 32 hexadecimal digits."""
        cases = sorted((slide.slide_id, repr(slide.label)) for slide in self.slides if split in (None, slide.split))
        return hashlib.sha256(repr((self.labels, self.classes, cases)).encode()).hexdigest()[:32]

    def write(self, path: str | os.PathLike[str], columns: Mapping[str, Sequence[str]] | None = None) -> Path:
        """Write the cohort as CSV that ``read_cohort`` reads; slides are named relative to the table's folder.

        Columns of the table that the cohort was read from and that mean nothing here are kept behind the others.

        Args:
            path: the table.
            columns: further columns behind the labels, one text for every slide.

        Returns:
            ``path``.

        Raises:
            CohortError: the path is that of a data list (.json), which is not written.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            raise CohortError(f"cohort '{path}': is written as CSV; give it the ending .csv")
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        named = self._named("series_uid", "acquisition", "mpp")
        fold = ["fold"] if self.folds else []
        header = [self.id_column, "patient_id", "path", *named, "split", *fold, *self.labels, *(columns or {})]
        others = [name for name in {name: None for slide in self.slides for name in slide.others} if name not in header]
        writer.writerow(header + others)
        rest = zip(*columns.values(), strict=True) if columns else itertools.repeat(())
        for slide, cells in zip(self.slides, rest, strict=False):
            place = "" if slide.path is None else _relative(slide.path, path.parent)
            said = [slide.slide_id, slide.patient_id, place, *(getattr(slide, name) or "" for name in named)]
            kept = [slide.others.get(name, "") for name in others]
            writer.writerow(
                [*said, slide.split or "", *([slide.fold] if fold else []), *self._label_text(slide), *cells, *kept]
            )
        with replacing(path) as partial:
            partial.write_text(table.getvalue(), encoding="utf-8")
        return path

    def _named(self, *fields: str) -> list[str]:
        """Those of the fields that any slide or scan has."""
        return [name for name in fields if any(getattr(slide, name) for slide in self.slides)]

    def _label_text(self, slide: CohortSlide) -> list[str]:
        if isinstance(slide.label, int):
            return [self.classes[slide.label] if slide.label >= 0 else ""]
        return ["" if math.isnan(value) else repr(float(value)).removesuffix(".0") for value in slide.label or ()]


class AbsentCohort(Cohort):
    """The cohort of a table that is not there: it has no cases, and raises a CohortError where some are asked for."""

    def datalist(
        self, split: str | None = None, bag_dir: str | os.PathLike[str] | None = None, *, check: bool = True
    ) -> list[dict[str, Any]]:
        """Raises the CohortError."""
        raise absent_error(self.source)

    def digest(self, split: str | None = None) -> str:
        """Raises the CohortError."""
        raise absent_error(self.source)


def absent_error(path: Path) -> CohortError:
    """That a table is not there."""
    return CohortError(f"cohort '{path}': no such file; check the path")


def _bag(folder: Path, name: str) -> Path:
    """The bag of a slide or scan: its HDF5 file, or CLAM's ``.pt`` where there is no other."""
    path, saved = (existing(folder / f"{file_stem(name)}{suffix}") for suffix in (".h5", ".pt"))
    return saved if saved.exists() and not path.exists() else path


def _is_own(bag: Path) -> bool:
    """Whether a bag was written by this package and says itself where its slide lies."""
    if bag.suffix == ".pt":
        return False
    try:
        with open_hdf5(bag) as file:
            return "monai_mil.slide_id" in file.attrs
    except (OSError, ValueError):  # missing or damaged: whoever reads it says so
        return True


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
