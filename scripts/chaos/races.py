"""Four processes at once in one folder: each case is done once, or all but one of them are told who came first."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from chaos.folders import leftovers, made_twice, results
from chaos.forks import run, start
from chaos.kills import Task, tasks
from chaos.materials import Materials
from chaos.promises import Promises

PROCESSES = 4
_SHARED = ("embed", "embed --storage uint8", "embed-scans")
_ALONE = ("train", "predict")
_BUSY = "is being written by another run"


def races(folder: Path, seed: int, count: int) -> Promises:
    """So many races of four processes; the kinds of runs take turns."""
    made = Materials(folder / "materials", seed)
    promises = Promises()
    chosen = [task for task in tasks(made) if task.name in (*_SHARED, *_ALONE)]
    for number, task in enumerate(chosen):
        rounds = len(range(number, count, len(chosen)))
        if rounds:
            _race(task, folder, rounds, random.Random(f"{seed} {task.name}"), promises)
    return promises


def _race(task: Task, folder: Path, rounds: int, rng: random.Random, promises: Promises) -> None:
    whole, out = folder / "races" / "whole", folder / "races" / "out"
    shutil.rmtree(folder / "races", ignore_errors=True)
    whole.mkdir(parents=True)
    run(task.work(whole, False), folder / "said.txt")
    expected = results(whole)
    for _ in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        forks = []
        for number in range(PROCESSES):
            forks.append(start(task.work(out, False), folder / f"said{number}.txt"))
            time.sleep(0.2 * rng.random())
        for fork in forks:
            fork.wait(300)
            told = fork.code == 0 or (task.name in _ALONE and _BUSY in fork.words)
            name = "every process ends well, or is told who works there"
            promises[name].test(told, f"{task.name}: code {fork.code}: {fork.words[-300:]}")
        ended = sum(fork.code == 0 for fork in forks)
        promises["somebody ends well"].test(ended > 0, task.name)
        found = results(out)
        for name in expected:
            promises["nothing lost"].test(name in found, f"{task.name}: {name}")
            promises["byte-identical to a run alone, times apart"].test(
                found.get(name) == expected[name], f"{task.name}: {name}"
            )
        promises["nothing more"].test(set(found) <= set(expected), f"{task.name}: {sorted(set(found) - set(expected))}")
        twice = made_twice(out)
        promises["nothing twice"].test(not twice, f"{task.name}: {twice}")
        left = leftovers(out)
        promises["nothing left half-written, no lock"].test(not left, f"{task.name}: {left}")
    promises[f"{task.name}: {PROCESSES} processes at once"].tried += rounds
