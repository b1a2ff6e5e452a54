"""Disks that are full, or have no room for another name, at any place of a run; then there is room again."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.folders import results
from chaos.forks import run
from chaos.kills import Task, tasks
from chaos.materials import Materials
from chaos.promises import Promises

_TASKS = ("embed", "embed --levels 2", "embed-scans", "train", "predict", "report")
_WORDS = "No space left on device"


def full(folder: Path, seed: int, count: int) -> Promises:
    """So many full disks, small ones in memory, which needs root; every second has too few inodes instead."""
    made = Materials(folder / "materials", seed)
    chosen = [task for task in tasks(made) if task.name in _TASKS]
    expected: dict[str, dict[str, bytes]] = {}
    needs: dict[str, tuple[int, int]] = {}
    promises = Promises()
    rng = random.Random(seed)
    for number in range(count):
        task = chosen[number % len(chosen)]
        if task.name not in expected:
            with _disk(folder, "size=256m") as disk:
                run(task.work(disk, False), folder / "said.txt")
                expected[task.name] = results(disk)
                paths = list(disk.rglob("*"))
                needs[task.name] = sum(path.stat().st_size for path in paths if path.is_file()), len(paths)
        size, names = needs[task.name]
        share = rng.random()
        if number // len(chosen) % 2:
            _try(task, folder, f"size=256m,nr_inodes={2 + int(share * names)}", "nr_inodes=100000", expected, promises)
        else:
            _try(task, folder, f"size={max(4, int(share * size) >> 10)}k", "size=256m", expected, promises)
    return promises


def _try(
    task: Task, folder: Path, room: str, more: str, expected: dict[str, dict[str, bytes]], promises: Promises
) -> None:
    what = f"{task.name} on {room}"
    kind = "no inodes" if "inodes" in room else "a full disk"
    with _disk(folder, room) as disk:
        first = run(task.work(disk, False), folder / "said.txt")
        promises[f"{kind}: no crash, no traceback"].test(
            first.code in (0, 1) and "Traceback" not in first.words, f"{what}: code {first.code}: {first.words[-500:]}"
        )
        if first.code:
            promises[f"{kind}: the reason is told"].test(_WORDS in first.words, f"{what}: {first.words[-300:]}")
        for name, content in results(disk).items():
            good = name == "failed.csv" or "model" in name or content == expected[task.name].get(name)
            promises[f"{kind}: no half file"].test(good, f"{what}: {name}")
        subprocess.run(["mount", "-o", f"remount,{more}", disk], check=True)
        again = run(task.work(disk, False), folder / "said.txt")
        if "set aside" in again.words or again.code:
            again = run(task.work(disk, True), folder / "said.txt")
        promises["with room again the run ends well"].test(again.code == 0, f"{what}: {again.words[-400:]}")
        found = results(disk)
        promises["and byte-identical, times apart"].test(
            found == expected[task.name],
            f"{what}: {[name for name in expected[task.name] if found.get(name) != expected[task.name][name]]}",
        )


@contextmanager
def _disk(folder: Path, room: str) -> Iterator[Path]:
    disk = folder / "small"
    disk.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
