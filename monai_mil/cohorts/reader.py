"""Reading a cohort from a CSV table or a MONAI data list; whatever is wrong is named by file, row and column."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_mil.cohorts.cohort import SPLITS, AbsentCohort, Cohort, CohortSlide, absent_error
from monai_mil.cohorts.patients import check_bag_of
from monai_mil.cohorts.splits import choose_fold
from monai_mil.errors import CohortError
from monai_mil.model_card import ModelCard
from monai_mil.names import composed, existing, is_there, names_a_file
from monai_mil.slides import slide_id

logger = logging.getLogger(__name__)

_SECTIONS = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "val": "val",
    "testing": "test",
    "test": "test",
    "data": None,
}
_PLAIN = ("image", "path", "slide_id", "scan_id", "patient_id", "series_uid", "acquisition", "fold")
"""Columns in which a data list may hold no list."""
_OWN = {*_PLAIN, "split", "fold", "mpp"}
_SHOWN_PROBLEMS = 10
_NAN = "nan"
"""How pandas may write a missing value."""


@dataclass
class Table:
    """Rows as ``(where, cells)`` and the problems found in them; made by ``read_table``."""

    source: Path
    columns: list[str]
    rows: list[tuple[str, dict[str, Any]]]
    problems: list[str] = field(default_factory=list)

    @property
    def id_column(self) -> str:
        """The column of the names: ``scan_id`` of a table that has it and no ``slide_id``."""
        return "scan_id" if "scan_id" in self.columns and "slide_id" not in self.columns else "slide_id"

    def problem(self, row: str, column: str, what: str) -> None:
        """Note what is wrong in a row."""
        self.problems.append(f"{row}, column '{column}': {what}")

    def raise_problems(self) -> None:
        """Raise a CohortError of all that was noted, if anything was."""
        if self.problems:
            shown = self.problems[:_SHOWN_PROBLEMS]
            more = len(self.problems) - len(shown)
            lines = shown + ([f"and {more} more"] if more else [])
            raise CohortError(f"cohort '{self.source}', " + "; ".join(lines))


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a cohort, by its suffix.

    Examples:
        >>> from monai_mil.cohorts import is_table
        >>> is_table("cohort.csv"), is_table("slide.svs")
        (True, False)
    """
    return Path(path).suffix.lower() in (".csv", ".json")


def read_cohort(
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] = ("label",),
    classes: Sequence[str] | None = None,
    unlabelled: bool = False,
    fold: int | None = None,
    trained: ModelCard | None = None,
    bag_of: str = "slide",
    ordered: bool = False,
    leave_out: Callable[[Cohort], Collection[str]] | None = None,
    must_exist: bool = True,
) -> Cohort:
    """Read and check a cohort.

    A CSV table has the columns ``slide_id`` (or ``scan_id``), the label columns, and where wanted ``path`` (relative to
    the table), ``patient_id`` (default: the slide id), ``split`` (train, val, test), ``fold`` (its number in a
    cross-validation), ``series_uid`` (of scans whose folder holds several series), ``acquisition`` (of scans whose
    series has several that overlap) and ``mpp`` (micrometres per level-0 pixel, whatever the slide's file says). A
    MONAI data list (JSON) is a list of dictionaries, or lists under ``training``, ``validation`` and ``testing``; their
    ``image`` is the path and the slide id defaults to its name.

    Args:
        path: the table or data list.
        labels: label columns. One names the class of every slide; of several each holds 0, 1 or nothing (unknown).
            Empty if no labels are wanted.
        classes: the classes in the order of a network's outputs; default the table's, sorted.
        unlabelled: accept slides without a label (class -1, all NaN), as inference does.
        fold: the fold to test on, which makes splits of the folds (:func:`choose_fold`); None takes the table's splits.
        trained: the model that is evaluated or predicts, where there is one. If it was trained on a fold, a table
            without folds is another cohort and its splits are taken, and folds that are not those of the training are
            told; both in the log.
        bag_of: see :class:`Cohort`; ``"slide"``, ``"scan"``, which says the same, or ``"patient"``.
        ordered: likewise.
        leave_out: gives the names of the cases to leave out, such as ``training.BrokenBags``; None leaves out none.
        must_exist: raise at once where there is no such file. Else that is told when cases are asked for, and until
            then there is a cohort without any: a training's configuration can be looked into, as ``monai.bundle.load``
            does.

    Returns:
        The cohort.

    Raises:
        CohortError: anything is missing, unknown, duplicate or unreadable; names file, row and column.
        SettingsError: bags cannot be of that.

    Examples:
        >>> from monai_mil.cohorts import read_cohort
        >>> _ = (folder / "cohort.csv").write_text('''slide_id,patient_id,split,label
        ... S-1,P-1,train,normal
        ... S-2,P-1,train,tumor''')
        >>> cohort = read_cohort(folder / "cohort.csv")
        >>> cohort.classes, [slide.label for slide in cohort.slides]
        (('normal', 'tumor'), [0, 1])
    """
    check_bag_of(bag_of)
    path = Path(path)
    if not (must_exist or path.is_file()):
        return AbsentCohort(path, ())
    table = read_table(path)
    if {"slide_id", "scan_id"} <= set(table.columns):
        raise CohortError(f"cohort '{path}', row 1: both 'slide_id' and 'scan_id'; keep the one that names the bags")
    labels = tuple(labels)
    required = [table.id_column, *(() if unlabelled else labels)]
    missing = [column for column in required if column not in table.columns]
    if missing:
        names = " and ".join(f"'{name}'" for name in missing)
        raise CohortError(f"cohort '{path}', row 1: no column {names}; it has {', '.join(table.columns)}")
    known = _classes(table, labels, classes)
    _check_classes(table, labels, classes)
    slides = tuple(_slide(table, row, cells, labels, known, unlabelled) for row, cells in table.rows)
    _check_together(table, slides)
    table.raise_problems()
    cohort = Cohort(path, slides, labels, known, table.id_column, bag_of, ordered)
    return without(with_fold(cohort, fold, trained), leave_out)


def with_fold(cohort: Cohort, fold: int | None, trained: ModelCard | None = None) -> Cohort:
    """:func:`choose_fold` as :func:`read_cohort` does it."""
    if fold is None:
        return cohort
    of_model = trained is not None and trained.get("fold") is not None
    if of_model and not cohort.folds:
        logger.warning(
            "cohort '%s': has no column 'fold', and the model was trained with fold %s of its cohort; this one's own "
            "splits are taken",
            cohort.source,
            fold,
        )
        return cohort
    chosen = choose_fold(cohort, fold)
    if of_model and trained is not None and trained.training_data not in (None, chosen.digest("train")):
        logger.warning(
            "cohort '%s': the cases and labels outside fold %s are not those the model was trained on: another cohort, "
            "or its folds or labels were changed since; then the model may have seen the cases it is tested on",
            cohort.source,
            fold,
        )
    return chosen


def without(cohort: Cohort, leave_out: Callable[[Cohort], Collection[str]] | None) -> Cohort:
    """The cohort without the cases that ``leave_out`` names."""
    names = () if leave_out is None else leave_out(cohort)
    return replace(cohort, slides=tuple(slide for slide in cohort.slides if slide.slide_id not in names))


def read_table(path: Path) -> Table:
    """The rows of a CSV table or MONAI data list, as they stand there.

    Raises:
        CohortError: the file cannot be read, is no table, or has no rows.
    """
    table = _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)
    if not table.rows:
        raise CohortError(f"cohort '{path}': no slides or scans; add one row for each")
    return table


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise CohortError(
            f"cohort '{path}', row {reader.line_num}: not CSV ({error}); look for a quotation mark without its partner"
        ) from None
    header = _without_empty_end(next(iter(lines), (1, []))[1])
    if len(header) == 1:
        found = next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
        if found is not None:
            raise CohortError(f"cohort '{path}', row 1: columns are separated by {found!r}; save with commas")
    table = Table(path, header, [])
    for name in sorted({name for name in header if header.count(name) > 1}):
        table.problem("row 1", name, "stands there twice")
    for number, cells in lines[1:]:
        filled = _without_empty_end(cells)
        if not filled:
            continue
        row = f"row {number}"
        if len(cells) < len(header) or len(filled) > len(header):
            table.problem(row, header[min(len(cells), len(header)) - 1], f"{len(cells)} cells, not {len(header)}")
        filled += [""] * (len(header) - len(filled))
        table.rows.append((row, dict(zip(header, filled, strict=False))))
    table.raise_problems()
    return table


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return composed(file.read())
    except FileNotFoundError:
        raise absent_error(path) from None
    except UnicodeDecodeError as error:
        raise CohortError(f"cohort '{path}': not UTF-8 (byte {error.start}); save the table as CSV UTF-8") from None
    except ValueError:  # a path with a zero in it
        raise CohortError(f"cohort '{path}': no such file; check the path") from None
    except OSError as error:
        raise CohortError(f"cohort '{path}': cannot be read ({error.strerror}); check the file") from None


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells without blanks around them and without the empty ones that spreadsheets put behind the last."""
    stripped = [cell.strip() for cell in cells]
    while stripped and not stripped[-1]:
        stripped.pop()
    return stripped


def _read_json(path: Path) -> Table:
    try:
        content = json.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise CohortError(f"cohort '{path}': not valid JSON ({reason}); correct it there") from None
    rows = list(_json_rows(path, content))
    return Table(path, sorted({column for _, cells in rows for column in cells}), rows)


def _json_rows(path: Path, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    sections = {"data": content} if isinstance(content, list) else content
    if not isinstance(sections, dict) or not any(name in _SECTIONS for name in sections):
        raise CohortError(f"cohort '{path}': neither a list nor sections named {', '.join(_SECTIONS)}")
    for section, split in _SECTIONS.items():
        items = sections.get(section, [])
        if not isinstance(items, list):
            raise CohortError(f"cohort '{path}': '{section}' is not a list of dictionaries")
        for index, item in enumerate(items):
            row = f"{section}[{index}]"
            if not isinstance(item, dict):
                raise CohortError(f"cohort '{path}', {row}: not a dictionary")
            cells = {name: value if isinstance(value, list) else _text(value) for name, value in item.items()}
            listed = [name for name in _PLAIN if isinstance(cells.get(name), list)]
            if listed:
                raise CohortError(
                    f"cohort '{path}', {row}, column '{listed[0]}': a list; give one item for every slide or scan"
                )
            place = cells.get("path") or cells.get("image") or ""
            named = {} if "scan_id" in cells else {"slide_id": _name_of(path.parent, str(place))}
            cells = named | {"path": place} | cells
            yield row, cells if split is None else cells | {"split": split}


def _name_of(folder: Path, place: str) -> str:
    """What a slide, volume file or series folder is called where the table does not say."""
    if place and is_there(Path(folder, place)) and Path(folder, place).is_dir():
        return Path(folder, place).resolve().name  # of a folder named by a UID, no part is a suffix
    return slide_id(re.sub(r"\.nii\.gz$", ".nii", place, flags=re.IGNORECASE))


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _classes(table: Table, labels: tuple[str, ...], classes: Sequence[str] | None) -> tuple[str, ...]:
    if not labels:
        return tuple(classes or ())
    if len(labels) > 1:
        return labels
    values = [cells.get(labels[0], "") for _, cells in table.rows]
    widths = {len(value) for value in values if isinstance(value, list)}
    if widths:
        return tuple(classes or (f"{labels[0]}_{k}" for k in range(max(widths))))
    if classes is not None:
        return tuple(map(str, classes))
    names = {value for value in values if value and value.lower() != _NAN}
    return tuple(sorted(names, key=float if all(map(_is_number, names)) else None))


def _check_classes(table: Table, labels: tuple[str, ...], classes: Sequence[str] | None) -> None:
    """One line for a cohort that has other classes altogether, in place of one for every row."""
    if len(labels) != 1 or classes is None:
        return
    found = _classes(table, labels, None)
    if any(isinstance(cells.get(labels[0]), list) for _, cells in table.rows) or not found:
        return
    if not set(found) & set(map(str, classes)):
        raise CohortError(
            f"cohort '{table.source}', column '{labels[0]}': its classes are {', '.join(found)}, the run is set up for "
            f'{", ".join(map(str, classes))}; add --class_names "{list(found)}"'
        )


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _slide(
    table: Table, row: str, cells: dict[str, Any], labels: tuple[str, ...], classes: tuple[str, ...], unlabelled: bool
) -> CohortSlide:
    name = cells.get(table.id_column, "")
    if not name:
        table.problem(row, table.id_column, "empty")
    elif not names_a_file(name):
        table.problem(row, table.id_column, f"'{name}' cannot name a file; use no path separators and no leading dot")
    split = cells.get("split") or None
    if split is not None and split not in SPLITS:
        table.problem(row, "split", f"'{split}' is none of {', '.join(SPLITS)}")
    return CohortSlide(
        slide_id=name,
        patient_id=cells.get("patient_id") or name,
        path=existing(table.source.parent / cells["path"]) if cells.get("path") else None,
        split=split,
        label=_label(table, row, cells, labels, classes, unlabelled),
        row=row,
        fold=_fold(table, row, cells),
        series_uid=cells.get("series_uid") or None,
        acquisition=_text(cells.get("acquisition")).removesuffix(".0") or None,
        mpp=_pixel_size(table, row, cells),
        others={column: _text(value) for column, value in cells.items() if column not in _OWN},
    )


def _fold(table: Table, row: str, cells: dict[str, Any]) -> int | None:
    text = _text(cells.get("fold")).removesuffix(".0")
    if not text or text.lower() == _NAN:
        return None
    if not text.isdecimal():
        table.problem(row, "fold", f"'{text}' is no whole number from 0 up")
        return None
    return int(text)


def _pixel_size(table: Table, row: str, cells: dict[str, Any]) -> float | None:
    text = _text(cells.get("mpp"))
    if not text or text.lower() == _NAN:
        return None
    try:
        mpp = float(text.replace(",", "."))
    except ValueError:
        mpp = math.nan
    if not 0 < mpp < math.inf:
        table.problem(row, "mpp", f"'{text}' is no positive number of micrometres")
        return None
    return mpp


def _label(
    table: Table, row: str, cells: dict[str, Any], labels: tuple[str, ...], classes: tuple[str, ...], unlabelled: bool
) -> int | tuple[float, ...] | None:
    if not labels:
        return None
    values = cells.get(labels[0], "") if len(labels) == 1 else [cells.get(name, "") for name in labels]
    if isinstance(values, list):
        return _multi_label(table, row, values, labels, classes, unlabelled)
    if values in classes:
        return classes.index(values)
    known = values and values.lower() != _NAN
    if known or not unlabelled:
        table.problem(
            row, labels[0], f"'{values}' is none of the classes {', '.join(classes)}" if known else "no label"
        )
    return -1


def _multi_label(
    table: Table, row: str, values: list[Any], labels: tuple[str, ...], classes: tuple[str, ...], unlabelled: bool
) -> tuple[float, ...]:
    columns = labels if len(labels) > 1 else labels * len(classes)
    if len(values) != len(classes):
        table.problem(row, labels[0], f"{len(values)} values for the {len(classes)} classes")
        return ()
    parsed = []
    for column, value in zip(columns, map(_text, values), strict=True):
        allowed = {"": math.nan, _NAN: math.nan, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
        if value.lower() not in allowed:
            table.problem(row, column, f"'{value}' is none of 0, 1 and empty (unknown)")
        parsed.append(allowed.get(value.lower(), math.nan))
    if not unlabelled and all(math.isnan(value) for value in parsed):
        table.problem(row, labels[0], "no label in any label column")
    return tuple(parsed)


def _check_together(table: Table, slides: tuple[CohortSlide, ...]) -> None:
    """What can only be seen across rows: duplicate slides, divided patients, a half-filled split column."""
    first: dict[str, CohortSlide] = {}
    home: dict[str, CohortSlide] = {}
    has_splits = any(slide.split for slide in slides)
    has_folds = any(slide.fold is not None for slide in slides)
    for slide in slides:
        if slide.slide_id and slide is not (earlier := first.setdefault(slide.slide_id, slide)):
            table.problem(slide.row, table.id_column, f"'{slide.slide_id}' stands already in {earlier.row}")
        if has_splits and slide.split is None:
            table.problem(slide.row, "split", "empty, but other rows have one")
        if has_folds and slide.fold is None:
            table.problem(slide.row, "fold", "empty, but other rows have one")
        other = home.setdefault(slide.patient_id, slide)
        if other.split != slide.split:
            what = f"patient '{slide.patient_id}' is in '{slide.split}' but in '{other.split}' in {other.row}"
            table.problem(slide.row, "split", what)
