"""Leftovers of killed runs go, what belongs to a living one stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from monai_mil.embedding import embed_cohort
from monai_mil.leftovers import remove_leftovers
from monai_mil.locks import Claim
from monai_mil.runs import find_bundle
from monai_mil.runs.run import BundleRun
from monai_mil.savers import HeatmapSaver
from tests.embedding.conftest import slide_of
from tests.embedding.counting import CountingEncoder

GONE = 2**22 + 1  # no process has such a number


def left(folder: Path, process: int, *, minutes: int, suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".S-1.h5.{process}{suffix}.tmp"
    path.touch()
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60 * minutes))
    return path


@pytest.mark.parametrize("suffix", ["", "-0a1b2c3d"])
def test_half_written_files_go_when_their_process_is_gone(tmp_path, suffix):
    gone = [left(folder, GONE, minutes=11, suffix=suffix) for folder in (tmp_path, tmp_path / "heatmaps")]
    ours = left(tmp_path, os.getpid(), minutes=99, suffix=suffix)
    fresh = left(tmp_path / "fresh", GONE, minutes=9, suffix=suffix)
    other = tmp_path / ".mine.tmp"
    other.touch()
    remove_leftovers(tmp_path)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in (ours, fresh, other))


def test_locks_go_that_nobody_holds(tmp_path):
    (tmp_path / ".partial").mkdir()
    free, held = (tmp_path / ".partial" / f"{name}.lock" for name in ("free", "held"))
    free.touch()
    with FileLock(held):
        remove_leftovers(tmp_path)
        assert (free.exists(), held.exists()) == (False, True)


def test_claims_go_that_nobody_has(tmp_path):
    for name in (".predict.jsonl.lock", ".predict.jsonl.run", ".checkpoints.lock"):
        (tmp_path / name).touch()
    (tmp_path / ".mine.lock").write_text("no lock of ours")
    claim = Claim(tmp_path / "metrics.json")
    claim.take()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".metrics.json.lock",
        ".metrics.json.run",
        ".mine.lock",
    ]
    claim.release()


def test_every_kind_of_run_cleans_its_folder(tmp_path, monkeypatch):
    slide = slide_of(tmp_path / "a.tif", 600, 700)
    bags = left(tmp_path / "bags", GONE, minutes=11)
    lock = tmp_path / "bags" / ".partial" / "other.lock"
    lock.parent.mkdir()
    lock.touch()
    embed_cohort(slide, tmp_path / "bags", CountingEncoder(tmp_path / "log"), progress=False)
    heatmap = left(tmp_path / "out" / "heatmaps", GONE, minutes=11)
    HeatmapSaver(str(tmp_path / "out"))._begin()
    model = left(tmp_path / "run" / "models", GONE, minutes=11)
    run = BundleRun(find_bundle("mil_baselines"), ("train",), {"output_dir": str(tmp_path / "run")})
    monkeypatch.setattr(BundleRun, "workflow", lambda self: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        run.start()
    assert not any(path.exists() for path in (bags, lock, heatmap, model))
