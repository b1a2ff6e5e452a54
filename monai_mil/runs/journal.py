"""Which cases of a prediction run are done, so that a run that was interrupted goes on with the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from monai_mil import __version__
from monai_mil.errors import OutputError
from monai_mil.files import parse_json, replacing
from monai_mil.identity import change_stamp
from monai_mil.scans import files_touched
from monai_mil.slides import slide_files

_PLACES = {"bundle_root", "dataset_dir", "inputs", "cohort_file", "bag_dir", "output_dir", "ckpt_path", "device"}
_CHECKSUM = ', "crc32": '


@dataclass
class Journal:
    """A file of one line a case that is done: what it was made of, and what each table says of it.

    It belongs to one set of settings and weights; where it was written under others it begins anew. A case of another
    source, or of other cells of the cohort's table, is not done.

    A line is written too before a case begins, so that of a case that takes the process down with it something is left.
    Every line ends with a checksum of itself: one that is not what was written says nothing.

    Attributes:
        path: the file.
        settings: what :func:`settings_digest` gives for the run.
        done: by case, what stands in its line.
        deaths: by case, how often the process died in it, one time after the other.
        remark: what is wrong with the file that was read, for the user; None where nothing is.
    """

    path: Path
    settings: str
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    remark: str | None = None

    @classmethod
    def open(cls, path: Path, settings: str) -> Journal:
        """The journal of a folder's earlier run if that had the same settings, else a new one."""
        journal = cls(path, settings)
        if not path.is_file():
            return journal
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        cut = lines.pop()  # what a kill left of the last line
        has_checksums = any(map(_is_checked, lines))
        entries = [_parsed(line, has_checksums) for line in (*lines, *filter(None, [cut]))]
        is_ours = bool(entries) and entries[0].get("settings") == settings
        if is_ours:
            journal.done = {entry["case"]: entry for entry in entries[1:] if "case" in entry}
            journal.deaths = _deaths(entries[1:])
        journal.remark = _remark(path, lines, has_checksums) if is_ours or has_checksums else None
        return journal

    def begin(self, done: Mapping[str, dict[str, Any]]) -> None:
        """Write the journal anew with the cases that are still done, and those in which the process died."""
        self.done = dict(done)
        died = [{"died": case, "times": times} for case, times in self.deaths.items() if case not in done]
        entries = [{"settings": self.settings}, *self.done.values(), *died]
        with replacing(self.path) as partial:
            partial.write_text("".join(map(_line, entries)), encoding="utf-8")

    def attempt(self, case: str) -> None:
        """Note that a case begins; unless it is added or ended later, the process died in it."""
        self._append({"begun": case})

    def end(self, case: str) -> None:
        """Note that a case has ended without a result, and without ending the process."""
        self._append({"ended": case})

    def withdraw(self) -> None:
        """Note that the run ends for another reason than the cases that have begun."""
        self._append({"withdrawn": True})

    def add(self, case: str, source: str, kept: Mapping[str, Any], files: Sequence[str]) -> None:
        """Note a case that is done, with the files beside the tables that it must have."""
        entry = {"case": case, "source": source, "kept": dict(kept), "files": list(files)}
        self.done[case] = entry
        self._append(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(entry))
        except OSError as error:
            raise OutputError(f"'{self.path}' cannot be written: {error.strerror}") from error


def _deaths(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often the process died in each case, by the lines of a journal."""
    deaths: dict[str, int] = {}
    begun: set[str] = set()
    for entry in entries:
        if "died" in entry:
            deaths[entry["died"]] = int(entry["times"])
        elif "begun" in entry:
            begun.add(entry["begun"])
        elif "withdrawn" in entry:
            begun.clear()
        elif (case := entry.get("case", entry.get("ended"))) is not None:
            begun.discard(case)
            deaths.pop(case, None)
    return deaths | {case: deaths.get(case, 0) + 1 for case in begun}


def _remark(path: Path, lines: Sequence[str], has_checksums: bool) -> str | None:
    damaged = [number for number, line in enumerate(lines) if not _is_checked(line)]
    if not damaged:
        return None
    if not has_checksums:
        return f"'{path.name}' is of an earlier version, without checksums, and is taken as it is"
    cases = "all cases" if damaged[0] == 0 else "the cases in them"
    return f"'{path.name}': {len(damaged)} of its lines are not what was written; {cases} are predicted again"


def _line(entry: Mapping[str, Any]) -> str:
    """An entry as it stands in the file: one line of JSON whose last key is the CRC-32 of the entry without it."""
    text = json.dumps(entry, ensure_ascii=False)
    return f"{text[:-1]}{_CHECKSUM}{crc32(text.encode())}}}\n"


def _is_checked(line: str) -> bool:
    """Whether a line has its checksum."""
    text, _, checksum = line.rpartition(_CHECKSUM)
    return checksum == f"{crc32((text + '}').encode())}}}"


def _parsed(line: str, checked: bool) -> dict[str, Any]:
    """A line of the journal; one that was cut when the run was killed, or is damaged, blames no case."""
    try:
        entry = parse_json(line) if _is_checked(line) or not checked else None
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        return {"withdrawn": True}
    entry.pop("crc32", None)
    return entry


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
