"""Who works on a file or folder alone is told to whoever comes second, and forgotten when it is gone."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from ignite.engine import Engine

from monai_mil import locks
from monai_mil.errors import BusyError, OutputError
from monai_mil.locks import Claim, claimed, locked, sharing
from monai_mil.savers import PredictionSaver
from tests.full_disk import full_after

GONE = (1 << 22) + 1
"""No process has a number above the system's highest."""


@contextmanager
def another_run(path: Path, process: int) -> Iterator[None]:
    """Hold a file as another process of this machine does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"host": socket.gethostname(), "process": process, "since": "noon"}
    path.with_name(f".{path.name}.run").write_text(json.dumps(note))
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        yield


def predict(folder: Path, step: Any = lambda engine, cases: cases) -> None:
    engine = Engine(step)
    PredictionSaver(str(folder), classes=["a", "b"]).attach(engine)
    engine.run([[{"slide_id": "S-1", "pred": torch.tensor([0.25, 0.75])}]])


def test_the_second_of_two_runs_is_told_which_is_the_first_and_leaves_its_table(tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    table.write_text("the first one's\n")
    process, host = os.getppid(), socket.gethostname()
    told = f"'{table}' is being written by another run (process {process} on {host}, since noon)"
    with another_run(table, process):
        with pytest.raises(BusyError, match=re.escape(told)):
            predict(tmp_path)
        assert table.read_text() == "the first one's\n"
    predict(tmp_path)
    assert table.read_text().splitlines()[1] == "S-1,,,b,0.25,0.75,"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_table_is_one_run_s_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    free = []

    def step(engine: Engine, cases: list[dict[str, object]]) -> list[dict[str, object]]:
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path / ".predictions.csv.lock", timeout=0).acquire()
        free.append(Claim(tmp_path / "predictions.csv").is_free)
        return cases

    predict(tmp_path, step)
    assert free == [False]
    assert Claim(tmp_path / "predictions.csv").is_free


def test_the_workers_of_a_killed_run_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, slept = tmp_path / "a", []
    with another_run(path, GONE):
        monkeypatch.setattr(locks, "_PATIENCE", 0.05)
        with pytest.raises(BusyError, match=f"process {GONE} on"):
            Claim(path).take()
        monkeypatch.setattr(locks, "_PATIENCE", 5.0)
        held = filelock.FileLock(path.with_name(".a.lock"), timeout=0)
        with pytest.raises(filelock.Timeout):
            held.acquire()
        monkeypatch.setattr(locks.time, "sleep", slept.append)
        monkeypatch.setattr(Claim, "_holder_lives", lambda claim: len(slept) > 3)
        with pytest.raises(OutputError):
            Claim(path).take()
    assert slept == [0.1] * 4


def test_a_claim_is_taken_several_times_within_a_process_and_leaves_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path / "a"):
        with claimed(tmp_path / "a"):
            assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", ".a.run"]
        assert not Claim(tmp_path / "a").is_free
    assert list(tmp_path.iterdir()) == []
    Claim(tmp_path / "a").release()


def test_runs_of_one_kind_share_a_folder_and_others_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    told = r"'bags' is being written by another run with other settings or another encoder \(process"
    first = another_run(folder / "aa-1-x", os.getppid())
    with first, sharing(folder, "aa", "bags"), pytest.raises(BusyError, match=told):
        sharing(folder, "bb", "bags").__enter__()
    with another_run(folder / "aa-1-x", os.getppid()):
        pass  # was killed
    with sharing(folder, "bb", "bags"), pytest.raises(BusyError, match=f"process {os.getpid()} on"):
        sharing(folder, "aa", "bags").__enter__()
    assert [path.name for path in folder.iterdir()] == ["runs.lock"]


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_inodes(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", without_inodes)
    with pytest.raises(OutputError, match=r"lock' cannot be written \(No space left on device\); free some space"):
        locked(tmp_path / "lock").__enter__()


def test_a_claim_that_cannot_be_noted_is_not_held(tmp_path: Path) -> None:
    with full_after(0), pytest.raises(OutputError, match=r"\.a\.run' cannot be written"):
        Claim(tmp_path / "a").take()
    assert Claim(tmp_path / "a").is_free
