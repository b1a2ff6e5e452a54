"""Which cases of a prediction run are done, so that a run that was interrupted goes on with the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_mil import __version__
from monai_mil.errors import OutputError
from monai_mil.identity import change_stamp
from monai_mil.scans import files_touched
from monai_mil.slides import slide_files

_PLACES = {"bundle_root", "dataset_dir", "inputs", "cohort_file", "bag_dir", "output_dir", "ckpt_path", "device"}


@dataclass
class Journal:
    """A file of one line a case that is done: what it was made of, and what each table says of it.

    It belongs to one set of settings and weights; where it was written under others it begins anew. A case of another
    source, or of other cells of the cohort's table, is not done.

    Attributes:
        path: the file.
        settings: what :func:`settings_digest` gives for the run.
        done: by case, what stands in its line.
    """

    path: Path
    settings: str
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: str) -> Journal:
        """The journal of a folder's earlier run if that had the same settings, else a new one."""
        journal = cls(path, settings)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        entries = [entry for entry in map(_parsed, lines) if entry is not None]
        if entries and entries[0].get("settings") == settings:
            journal.done = {entry["case"]: entry for entry in entries[1:] if "case" in entry}
        return journal

    def begin(self, done: Mapping[str, dict[str, Any]]) -> None:
        """Write the journal anew with the cases that are still done."""
        self.done = dict(done)
        lines = [{"settings": self.settings}, *self.done.values()]
        self._write("w", lines)

    def add(self, case: str, source: str, kept: Mapping[str, Any], files: Sequence[str]) -> None:
        """Note a case that is done, with the files beside the tables that it must have."""
        entry = {"case": case, "source": source, "kept": dict(kept), "files": list(files)}
        self.done[case] = entry
        self._write("a", [entry])

    def _write(self, mode: str, entries: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"'{self.path}' cannot be written: {error.strerror}") from error


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the journal; None for one that was cut when the run was killed."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def settings_digest(config: Mapping[str, Any], weights: Path) -> str:
    """What decides the answers of a run: its configuration apart from places, its weights, the version."""
    told = {name: value for name, value in config.items() if name not in _PLACES}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    digest.update(hashlib.sha256(weights.read_bytes()).digest())
    digest.update(__version__.encode())
    return digest.hexdigest()[:32]


def source_digest(item: Mapping[str, Any], *, raw: bool, scan: bool) -> str:
    """What tells whether a case is the one that was done: its cells, and its files by their stamps.

    Args:
        item: of the data list.
        raw: whether its image is a slide or scan, and no bag.
        scan: which of the two.
    """
    try:
        path = Path(item["image"])
        files = (files_touched(path) if scan else slide_files(path)) if raw else (path,)
        stamp = change_stamp(files)
    except Exception:  # whatever is wrong with it, the run tells
        stamp = "none"
    told = json.dumps({name: str(value) for name, value in item.items() if name != "image"}, sort_keys=True)
    return f"{stamp}:{hashlib.sha256(told.encode()).hexdigest()[:16]}"
