"""Short forms of ``scripts/chaos.py``: kills, a disk that loses all that was not flushed, damaged files.

The long form's table stands in ``docs/pages/robustness.md``.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run

SCRIPTS = ROOT / "scripts"
WORK = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from chaos.kills import kills
from chaos.materials import Materials
from chaos.power import power
from rich.console import Console

folder = Path(sys.argv[2])
made = Materials(folder / "materials", 0, (896, 768))
killed = kills(made, folder, 0, 3, ["embed"])
cut = power(made, folder, 0, 1, True, ["embed"])
for promises in (killed, cut):
    promises.show("", Console(width=150))
sys.exit(not (killed.all_kept and cut.all_kept))
"""
MUTATIONS = 200
SLOW = ("scan MHA", "scan NRRD", "slide")  # by libraries that take seconds to import, or may end the process


@pytest.mark.usefixtures("fork_server")
def test_an_embedding_that_is_killed_or_loses_its_power_keeps_its_promises(tmp_path: Path) -> None:
    done = run("-c", WORK, str(SCRIPTS), str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "nothing twice" in done.stdout
    assert "everything reads as it was written" in done.stdout


def test_damaged_files_are_refused_in_one_line_or_read_as_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from chaos.fuzz import FATAL, answer_of, damaged_file, judged, write
    from chaos.readers import all_readers

    readers = [reader for reader in all_readers(tmp_path / "sound", None) if not reader.name.startswith(SLOW)]
    counted: Counter[str] = Counter()
    sound = {}
    for reader in readers:
        write(reader, tmp_path / "whole", reader.files[reader.damaged])
        sound[reader.name] = [answer_of(reader, tmp_path / "whole").get("found")]
    for number in range(MUTATIONS):
        reader, place = readers[number % len(readers)], tmp_path / str(number)
        write(reader, place, damaged_file(reader, 2, number))
        outcome, told = judged(reader, answer_of(reader, place), place, sound[reader.name])
        broken = outcome in FATAL or (outcome == "different" and not (reader.unchecked or reader.heals))
        assert not broken, f"{reader.name}, number {number}: {outcome}: {told}"
        counted[outcome] += 1
    assert counted["refused"] > MUTATIONS / 3
    assert "chaos" in sys.modules


def test_a_disk_that_keeps_what_was_flushed_tells_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import os

    from chaos.flushed import kept_by_disk, noting_flushes

    from monai_mil import files

    def write() -> None:
        with files.replacing(tmp_path / "out" / "flushed") as path:
            path.write_text("whole")
        (tmp_path / "out" / "no name").write_text("lost")
        with monkeypatch.context() as careless:
            careless.setattr(files, "_flush", lambda path: None)
            with files.replacing(tmp_path / "out" / "empty") as path:
                path.write_text("lost")
        with files.replacing(tmp_path / "out" / "later") as path:
            path.write_text("its folder tells the names of all")

    monkeypatch.setattr(os, "fsync", os.fsync)
    (tmp_path / "out").mkdir()
    noting_flushes(write, tmp_path / "log")()
    kept = kept_by_disk(tmp_path / "log", tmp_path / "out")
    assert {name: kept.get(name) for name in ("flushed", "empty", "no name")} == {
        "flushed": b"whole",
        "empty": b"",
        "no name": b"",
    }
