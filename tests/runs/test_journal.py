"""The journal of a prediction run: what it says is what was written, whatever became of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monai_mil.runs.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Four cases are done, and the process died in a fifth."""
    written = Journal(tmp_path / "predict.jsonl", "settings")
    written.begin({})
    for number in range(4):
        written.attempt(f"S-{number}")
        written.add(f"S-{number}", "inode:1", {"PredictionSaver": {"prob": [0.25, 0.75]}}, [f"heatmaps/S-{number}.h5"])
    written.attempt("S-4")
    return written


def read(path: Path, settings: str = "settings") -> tuple[dict[str, Any], dict[str, int], str | None]:
    found = Journal.open(path, settings)
    return found.done, found.deaths, found.remark


def test_what_was_noted_is_read_and_written_again(journal: Journal) -> None:
    for _ in range(2):
        assert read(journal.path) == (journal.done, {"S-4": 1}, None)
        again = Journal.open(journal.path, "settings")
        again.begin(again.done)
    assert read(journal.path, "other settings") == ({}, {}, None)


def test_a_damaged_line_is_no_other_prediction(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    for place in range(0, len(whole), 3):
        journal.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        done, deaths, remark = read(journal.path)
        assert done.items() <= journal.done.items(), place
        assert len(done) >= 3 or "all cases are predicted again" in (remark or ""), place
        assert set(deaths) <= {"S-4"}, place
        assert remark is not None or place > len(whole) - 3, "it is told, but of the end that a kill may cut off"


def test_a_line_that_a_kill_cut_is_nothing_to_tell(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-20])
    assert read(journal.path) == (journal.done, {}, None)


def test_a_journal_without_checksums_is_read_and_told(journal: Journal) -> None:
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = "'predict.jsonl' is of an earlier version, without checksums, and is taken as it is"
    assert read(journal.path) == (journal.done, {"S-4": 1}, told)
