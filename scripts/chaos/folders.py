"""What a run left in its folder: compared with what an undisturbed run leaves, times apart."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

_TIMES = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?([+-]\d\d:?\d\d)?")
_TEXT = (".json", ".csv", ".html", ".geojson", ".txt")
_RECORDS = ("runs", "logs", "predict.log", "predict.jsonl")
"""What tells how a run went rather than what came of it."""


def results(folder: Path) -> dict[str, bytes]:
    """Content of every file that has its final name, by its path in the folder; times in texts are blanked.

    ``predictions.partial.csv``, the rows so far of a prediction that goes on, says by its name that it is no result.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        if path.is_file() and place.parts[0] not in _RECORDS and not hidden and ".partial." not in path.name:
            found[str(place)] = blanked(path.name, path.read_bytes())
    return found


def blanked(name: str, content: bytes) -> bytes:
    """The content of a file without the times in it, if it is a text."""
    return _TIMES.sub(b"TIME", content) if name.endswith(_TEXT) else content


def leftovers(folder: Path) -> list[str]:
    """Hidden files but those that stand ready for the next run: locks below ``.partial`` and what is in them."""
    unfinished = [str(path.relative_to(folder)) for path in folder.rglob("*.partial.*")]
    return (
        unfinished
        + sorted(
            str(path.relative_to(folder))
            for path in folder.rglob(".*")
            if path.is_file() and not (path.suffix == ".lock" and ".partial" in path.parts)
        )
        + sorted(
            str(path.relative_to(folder))
            for path in (folder / ".partial").rglob("*")
            if path.is_file() and path.suffix != ".lock" and not path.name.startswith(".")
        )
    )


def grow_old(folder: Path) -> None:
    """As if an hour had passed since the last run: what nobody writes any more may be cleaned away."""
    past = time.time() - 3600
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden and path.is_file():
            os.utime(path, (past, past))


def made_twice(folder: Path) -> list[str]:
    """Cases that several runs say to have embedded, or that stand in a table more than once."""
    made: Counter[str] = Counter()
    for manifest in (folder / "runs").glob("*.json"):
        record = json.loads(manifest.read_text())
        cases = record.get("slides", record.get("scans", []))
        made.update(case.get("slide_id", case.get("scan_id")) for case in cases if case["status"] == "embedded")
    twice = [case for case, times in made.items() if times > 1]
    for table in folder.rglob("predictions.csv"):
        with table.open(newline="") as file:
            names = Counter(row.get("slide_id", row.get("scan_id")) for row in csv.DictReader(file))
        twice += [str(name) for name, times in names.items() if times > 1]
    return twice
