"""The power goes after a run has said that it succeeded: what it made is there, and whole."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chaos.flushed import kept_by_disk, noting_flushes
from chaos.folders import blanked, results
from chaos.forks import run
from chaos.kills import Task, tasks
from chaos.materials import Materials
from chaos.promises import Promises

LATEST = 24.0
"""Seconds after success; the kernel itself writes what nobody flushed after 30."""
_TASKS = ("embed", "embed --storage uint8", "embed-scans", "train", "predict")
_HARSH = "loop,noauto_da_alloc,commit=600"
"""ext4 that writes nothing by itself for ten minutes, and does not guess that a renamed file should be whole."""


def power(
    made: Materials, folder: Path, seed: int, count: int, simulated: bool, names: Sequence[str] = _TASKS
) -> Promises:
    """Cut the power at so many moments: of an image of a disk, or where none can be mounted of a simulated one."""
    chosen = [task for task in tasks(made) if task.name in names]
    promises = Promises()
    for number, task in enumerate(chosen):
        moments = len(range(number, count, len(chosen)))
        if moments and simulated:
            _of_simulation(task, folder, promises)
        elif moments:
            rng = random.Random(f"{seed} {task.name}")
            _of_image(task, folder, sorted([0.0, *(LATEST * rng.random() for _ in range(moments - 1))]), promises)
    if not simulated:
        _control(chosen[0], folder, promises)
    return promises


def _of_simulation(task: Task, folder: Path, promises: Promises) -> None:
    out, log = folder / "simulated", folder / "flushes.jsonl"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log.unlink(missing_ok=True)
    fork = run(noting_flushes(task.work(out, False), log), folder / "said.txt")
    promises["the run ends well"].test(fork.code == 0, f"{task.name}: {fork.words[-400:]}")
    _compare(task.name, results(out), kept_by_disk(log, out), promises)


def _compare(what: str, made: dict[str, bytes], kept: dict[str, bytes], promises: Promises) -> None:
    for name, content in made.items():
        found = kept.get(name)
        promises["nothing is missing after the cut"].test(found is not None, f"{what}: {name}")
        if found is not None:
            good = blanked(name, found) == content
            promises["everything reads as it was written"].test(good, f"{what}: {name}, {len(found)} bytes")


def _of_image(task: Task, folder: Path, moments: list[float], promises: Promises) -> None:
    with _disk(folder) as (image, disk):
        out = disk / "out"
        out.mkdir()
        _sync(disk)
        fork = run(task.work(out, False), folder / "said.txt")
        ended = time.monotonic()
        promises["the run ends well"].test(fork.code == 0, f"{task.name}: {fork.words[-400:]}")
        cuts = []
        for number, moment in enumerate(moments):
            time.sleep(max(0.0, ended + moment - time.monotonic()))
            cuts.append(folder / f"cut{number}.img")
            _copy(image, cuts[-1])
        made = results(out)
    for moment, cut in zip(moments, cuts, strict=True):
        promises["power cut"].test(True, "")
        _compare(f"{task.name}, cut after {moment:.1f} s", made, _after_cut(cut, folder), promises)
        cut.unlink()


def _control(task: Task, folder: Path, promises: Promises) -> None:
    """The same without flushing, to see that the disk would tell."""

    def careless() -> None:
        import os

        os.fsync = lambda handle: None
        task.work(disk / "out", False)()

    with _disk(folder) as (image, disk):
        (disk / "out").mkdir()
        _sync(disk)
        run(careless, folder / "said.txt")
        _copy(image, folder / "cut.img")
        made = results(disk / "out")
    kept = _after_cut(folder / "cut.img", folder)
    (folder / "cut.img").unlink()
    lost = sum(kept.get(name) != content for name, content in made.items())
    control = promises["without any flush the same disk loses files, so it would tell"]
    control.test(lost > 0, "nothing was lost")
    control.note = f"{lost} of {len(made)} lost"


@contextmanager
def _disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """An image file and where its ext4 is mounted."""
    image, disk = folder / "disk.img", folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", _HARSH, image, disk], check=True)
    try:
        yield image, disk
    finally:
        subprocess.run(["umount", disk], check=True)
        image.unlink()


def _sync(disk: Path) -> None:
    subprocess.run(["sync", "-f", disk], check=True)


def _copy(image: Path, cut: Path) -> None:
    subprocess.run(["cp", "--sparse=always", image, cut], check=True)


def _after_cut(cut: Path, folder: Path) -> dict[str, bytes]:
    """What the disk holds once its journal is replayed."""
    disk = folder / "after"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", cut, disk], check=True)
    try:
        return results(disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True)
