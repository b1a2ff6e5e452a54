"""From what an annotator drew to the label of a whole slide or scan."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_mil.errors import AnnotationError, CohortError
from monai_mil.label.heat import HEAT_CLASSES
from monai_mil.names import says_nothing_there

_IGNORED = {"", "ignore", "ignore*", "region", "region*", "exclusion", "background", "roi"}
_HEAT = {name.lower() for name in HEAT_CLASSES}
_NOTHING, _SOMETHING = "negative", "positive"


@dataclass(frozen=True)
class WeakLabel:
    """What is known of a whole slide or scan.

    Attributes:
        name: the class, as the model calls it; None where the rules give none.
        source: what said it: ``bag_label``, ``annotation``, ``mask`` or ``table``; where nothing did, why not.
    """

    name: str | None
    source: str


@dataclass(frozen=True)
class LabelRules:
    """Which classes there are and what annotators may call them.

    A class is known by its name in any case; ``negative`` and whatever says that there is nothing (``Normal``) is the
    first class where that says so too, ``positive`` the second of two. Classes that a model draws never count.

    Attributes:
        classes: of the models, in the order of their outputs.
        others: further names of annotation classes, in lower case, and the class that each means.
    """

    classes: tuple[str, ...]
    others: Mapping[str, str] = field(default_factory=dict)

    def class_of(self, name: str | None) -> str | None:
        """The class that an annotation class means; None where it means none that is known."""
        said = (name or "").strip().lower()
        for known in self.classes:
            if known.lower() == said:
                return known
        if said in self.others:
            return self.others[said]
        has_nothing = bool(self.classes) and says_nothing_there(self.classes[0])
        if has_nothing and (says_nothing_there(said) or said == _NOTHING):
            return self.classes[0]
        return self.classes[1] if said == _SOMETHING and len(self.classes) == 2 else None

    def unknown(self, names: Sequence[str | None]) -> list[str]:
        """Of annotation classes those that mean nothing here, sorted."""
        said = {(name or "").strip() for name in names}
        return sorted(name for name in said if not _counts_not(name) and self.class_of(name) is None)

    def check(self, names: Sequence[str | None]) -> None:
        """Refuse a submission that says nothing at all.

        Raises:
            AnnotationError: none of its classes is known, and one is unknown; names the classes there are.
        """
        unknown = self.unknown(names)
        if unknown and not any(self.class_of(name) for name in names if not _counts_not(name or "")):
            raise AnnotationError(
                f"no class of the model among {', '.join(map(repr, unknown))}: use {', '.join(self.classes)}"
            )

    def from_annotations(self, names: Sequence[str | None], *, whole: bool = True) -> WeakLabel:
        """The label that annotation classes give a slide: any finding before "nothing there".

        Args:
            names: the classes of what was drawn.
            whole: the annotator saw the whole slide; of a part of it "nothing there" says nothing of the rest.
        """
        counted = [self.class_of(name) for name in names if not _counts_not(name or "")]
        known = [name for name in counted if name is not None]
        if not known:
            return WeakLabel(None, "no annotation of a class of the model")
        findings = [name for name in self.classes if name in known and not says_nothing_there(name)]
        if findings:
            return WeakLabel(max(findings, key=known.count), "annotation")
        return WeakLabel(known[0], "annotation") if whole else WeakLabel(None, "only a part without a finding was seen")

    def from_parameters(self, params: Mapping[str, Any]) -> WeakLabel | None:
        """The label that the submission's own ``bag_label`` gives, a name or a number; None where it has none.

        Raises:
            AnnotationError: there is no such class.
        """
        said = params.get("bag_label")
        if said is None:
            return None
        if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < len(self.classes):
            return WeakLabel(self.classes[said], "bag_label")
        name = self.class_of(str(said))
        if name is None:
            raise AnnotationError(f"bag_label '{said}' is no class: use {', '.join(self.classes)}")
        return WeakLabel(name, "bag_label")

    def from_mask(self, has_finding: bool) -> WeakLabel:
        """The label that a mask gives a scan: the second of two classes where any voxel is above 0, else the first."""
        if len(self.classes) != 2:
            return WeakLabel(None, f"a mask does not tell {len(self.classes)} classes apart")
        return WeakLabel(self.classes[int(has_finding)], "mask")


def read_label_table(table: Path, rules: LabelRules) -> dict[str, WeakLabel]:
    """Labels by the images' names, of a CSV with the columns ``image`` (or ``slide_id``, ``scan_id``) and ``label``.

    Raises:
        CohortError: it cannot be read, lacks a column or names an unknown class.
    """
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"labels '{table}': cannot be read ({error})") from error
    found = {}
    for number, row in enumerate(rows, start=2):
        name = next((row[column] for column in ("image", "slide_id", "scan_id") if row.get(column)), None)
        if name is None or "label" not in row:
            raise CohortError(f"labels '{table}', line {number}: it needs the columns image and label")
        known = rules.class_of(row["label"])
        if known is None:
            raise CohortError(
                f"labels '{table}', line {number}: '{row['label']}' is no class: use {', '.join(rules.classes)}"
            )
        found[name] = WeakLabel(known, "table")
    return found


def _counts_not(name: str) -> bool:
    """Whether annotations of this class are none: a model's own, or helpers of the program."""
    said = name.strip().lower()
    return said in _IGNORED or said in _HEAT
