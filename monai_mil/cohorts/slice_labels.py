"""Labels of single slices, from a table beside the cohort."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_mil.errors import CohortError
from monai_mil.scans import Depth, ScanFrame

_LABELS = {"": -1, "-1": -1, "nan": -1, "0": 0, "1": 1, "0.0": 0, "1.0": 1}


class SliceLabelsd(MapTransform):
    """Set ``instance_labels``, int64 ``[n]``: 0 or 1 for every slice of a scan, -1 where the table does not say.

    The table is a CSV file with the columns ``sop_uid, label``, or ``scan_id, slice_index, label`` where slices have no
    UID of their own; ``slice_index`` counts from 0 in the order of the bag, which is from the feet to the head. An
    empty label is unknown. Every scan must stand in the table, with empty labels if need be: a table of other scans
    would else pass as one without labels. Where ``scan_id`` stands beside ``sop_uid``, all UIDs given for a scan must
    be in it. Coronal and sagittal series are labelled by the axial slices they are cut into. In a bag of another depth
    than its scan's, layers have the labels of their slices.

    Args:
        keys: keys of scans as ``LoadBagd`` or ``EmbedScand`` leave them.
        table: the CSV file; None keeps the labels that bag files hold themselves, and sets -1 where there are none.
        allow_missing_keys: skip absent keys.

    Raises:
        CohortError: the table cannot be read, lacks columns, labels a slice twice or by another value, or does not fit
            the scan; names the table with the row or the scan.
    """

    def __init__(
        self, keys: KeysCollection, table: str | os.PathLike[str] | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.table = None if table is None else Path(table)
        if self.table is not None:
            self._read_table(self.table)

    def _read_table(self, table: Path) -> None:
        columns, rows = _read(table)
        self._by_uid = "sop_uid" in columns
        self._labels: dict[str, dict[str, int]] = {}
        """Of every scan (``""`` where the table names none) the labels by UID, or by index in digits."""
        seen: dict[tuple[str, str], str] = {}
        for row, cells in rows:
            scan_id, name = cells.get("scan_id", ""), cells["sop_uid" if self._by_uid else "slice_index"]
            earlier = seen.setdefault(("" if self._by_uid else scan_id, name), row)
            if earlier != row:
                raise _problem(table, row, f"slice '{name}' stands already in {earlier}")
            if cells["label"].lower() not in _LABELS:
                raise _problem(table, row, f"label '{cells['label']}' is none of 0, 1 and empty (unknown)")
            self._labels.setdefault(scan_id, {})[name] = _LABELS[cells["label"].lower()]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Label the slices of ``data[key]``; the input dictionary is left as it is."""
        labelled = dict(data)
        for key in self.key_iterator(labelled):
            meta = labelled[key].meta
            if self.table is None:
                labelled.setdefault("instance_labels", torch.full(labelled[key].shape[1:2], -1))
                continue
            scan_id = str(labelled.get("scan_id") or labelled.get("slide_id") or meta["slide_id"])
            scans = [{**meta, "slide_id": scan_id}]
            if meta.get("slides"):  # of a patient, joined by bags.patient
                scans = json.loads(meta["slides"])
            labels = [self._of_instances(str(scan["slide_id"]), scan) for scan in scans]
            labelled["instance_labels"] = torch.from_numpy(np.concatenate(labels))
        return labelled

    def _of_instances(self, scan_id: str, meta: Mapping[str, Any]) -> np.ndarray:
        """The labels of the slices, or layers, of a scan."""
        if not meta.get("scan_frame"):
            raise CohortError(f"slice labels '{self.table}': '{scan_id}' is no scan; leave it out")
        names = self._names(scan_id, ScanFrame.from_json(meta["scan_frame"]))
        found = self._of_scan(scan_id, names)
        labels = np.array([found.get(name, -1) for name in names])
        depth = meta.get("scan_depth")
        return Depth.from_json(depth).layer_labels(labels) if depth else labels

    def _names(self, scan_id: str, frame: ScanFrame) -> list[str]:
        """What the table calls each slice."""
        if not self._by_uid:
            return [str(index) for index in range(len(frame))]
        if frame.instances is not frame:
            raise CohortError(
                f"slice labels '{self.table}': scan '{scan_id}' was acquired in slices that are not axial, cut "
                f"into {len(frame)} axial ones: label these by columns scan_id, slice_index and label"
            )
        if len(set(frame.sop_uids)) != len(frame):
            raise CohortError(
                f"slice labels '{self.table}': the slices of scan '{scan_id}' have no SOPInstanceUID of their own; "
                "give columns scan_id, slice_index and label"
            )
        return list(frame.sop_uids)

    def _of_scan(self, scan_id: str, names: list[str]) -> dict[str, int]:
        own = self._labels.get(scan_id, {})
        unknown = sorted(own.keys() - set(names))
        if unknown:
            what = "SOPInstanceUID" if self._by_uid else f"slice (it has 0 to {len(names) - 1})"
            raise CohortError(
                f"slice labels '{self.table}': {len(unknown)} of the rows of scan '{scan_id}' do not fit it, "
                f"it has no {what} '{unknown[0]}'; correct the table"
            )
        labels = self._labels.get("", {}) | own
        if not any(name in labels for name in names):
            raise CohortError(
                f"slice labels '{self.table}': no row for any of the {len(names)} slices of scan '{scan_id}'; "
                "add rows, with empty labels if they are unknown"
            )
        return labels


def _read(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Columns, and every row with its number in words."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            columns = list(reader.fieldnames)
            rows = [(f"row {reader.line_num}", {name: cells[name].strip() for name in columns}) for cells in reader]
    except FileNotFoundError:
        raise CohortError(f"slice labels '{path}': no such file; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"slice labels '{path}': cannot be read ({error}); save the table as CSV UTF-8") from None
    names = ("sop_uid",) if "sop_uid" in columns else ("scan_id", "slice_index")
    if not {*names, "label"} <= set(columns):
        has = ", ".join(columns) or "none"
        raise _problem(path, "row 1", f"columns {has}; give sop_uid and label, or scan_id, slice_index and label")
    for row, cells in rows:
        empty = [name for name in names if not cells[name]]
        if empty:
            raise _problem(path, row, f"column '{empty[0]}' is empty")
        if "slice_index" in names:
            if not cells["slice_index"].isdecimal():
                raise _problem(path, row, f"slice_index '{cells['slice_index']}' is no whole number from 0 up")
            cells["slice_index"] = str(int(cells["slice_index"]))
    return columns, rows


def _problem(path: Path, row: str, what: str) -> CohortError:
    return CohortError(f"slice labels '{path}', {row}: {what}")
