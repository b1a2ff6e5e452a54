"""``kill -9`` at random moments; then the run is let finish and compared with one that nobody disturbed."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.folders import grow_old, leftovers, made_twice, results
from chaos.forks import Fork, monai_mil, run, start
from chaos.materials import TRAINING, Materials
from chaos.promises import Promises

Work = Callable[[], object]
_AT_ONCE = 5
"""Kills of one run, one after the other, before it is let finish."""
_GROWING = ("checkpoints/", "model.pt", "model.json", "metadata.json", "metrics.csv")
"""What a training replaces by newer states of itself; such a file is not half if it can be read."""


@dataclass(frozen=True)
class Task:
    """A run to kill.

    Attributes:
        name: what it is called in tables.
        share: of all kills.
        work: what it does, given its output folder, and whether to try again what was set aside.
    """

    name: str
    share: float
    work: Callable[[Path, bool], Work]


def tasks(made: Materials) -> tuple[Task, ...]:
    def embed(*words: object) -> Callable[[Path, bool], Work]:
        return lambda out, retry: monai_mil("embed", made.slides, "--out", out, *words, *_retry(retry))

    def scans(out: Path, retry: bool) -> Work:
        return monai_mil("embed-scans", made.scans, "--out", out, *_retry(retry))

    def train(out: Path, retry: bool) -> Work:
        return monai_mil("train", "mil_baselines", made.bags, "--out", out, "--resume", *TRAINING)

    def predict(out: Path, retry: bool) -> Work:
        words = ("predict", "pathology_asmil", made.slides, "--raw", "--split", "test", "--device", "cpu")
        return monai_mil(*words, "--out", out, *_retry(retry))

    def report(out: Path, retry: bool) -> Work:
        return monai_mil("report", made.predictions, "--out", out / "report.html")

    return (
        Task("embed", 0.17, embed()),
        Task("embed --levels 2", 0.13, embed("--levels", 2)),
        Task("embed --spatial", 0.12, embed("--spatial")),
        Task("embed --storage uint8", 0.12, embed("--storage", "uint8")),
        Task("embed --workers 2", 0.05, embed("--workers", 2)),
        Task("embed-scans", 0.13, scans),
        Task("train", 0.10, train),
        Task("inference", 0.06, lambda out, retry: _inference(made, out)),
        Task("predict", 0.06, predict),
        Task("report", 0.06, report),
    )


def _retry(wanted: bool) -> tuple[str, ...]:
    return ("--retry",) if wanted else ()


def _inference(made: Materials, out: Path) -> Work:
    def work() -> None:
        from monai.bundle import run as monai_run

        from monai_mil.runs import find_bundle, predict_run

        settings = {"split": "test", "device": "$torch.device('cpu')"}
        told = predict_run(
            find_bundle("mil_baselines"), [made.bags / "cohort.csv"], out, model=made.model, settings=settings
        )
        monai_run(config_file=told.files, bundle_root=str(told.bundle.root), **told.settings)

    return work


def kills(made: Materials, folder: Path, seed: int, count: int, only: list[str]) -> Promises:
    """Put the promises of every task to the test with so many kills in all; ``only`` names some of the tasks."""
    chosen = [task for task in tasks(made) if not only or task.name in only]
    whole = sum(task.share for task in chosen)
    promises = Promises()
    for number, task in enumerate(chosen):
        rng = random.Random(f"{seed} {task.name}")
        _kill(task, folder / "kills" / str(number), max(1, round(count * task.share / whole)), rng, promises)
    return promises


def _kill(task: Task, folder: Path, count: int, rng: random.Random, promises: Promises) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "whole").mkdir(parents=True)
    begun = time.monotonic()
    undisturbed = run(task.work(folder / "whole", False), folder / "said.txt")
    took = time.monotonic() - begun
    promises["undisturbed runs end well"].test(undisturbed.code == 0, f"{task.name}: {undisturbed.words[-400:]}")
    expected = results(folder / "whole")
    killed = promises[f"{task.name}: killed"]
    ended = 0
    while killed.tried < count:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for number in range(min(_AT_ONCE, count - killed.tried)):
            begun = time.monotonic()
            fork = start(task.work(out, False), folder / "said.txt")
            at = rng.random() * took
            if fork.wait(at) is not None:  # no kill: there was little left to do, or the machine is less busy now
                took = took if number else min(took, time.monotonic() - begun)
                ended += 1
                break
            fork.kill(with_children=rng.random() < 0.5)
            killed.test(True, "")
            _check_nothing_half(task, out, expected, at, promises)
        _finish(task, out, expected, folder / "said.txt", promises)
    killed.note = f"{took:.1f} s undisturbed; {ended} more had ended before they could be"


def _check_nothing_half(task: Task, out: Path, expected: dict[str, bytes], at: float, promises: Promises) -> None:
    found = results(out)
    for name, content in found.items():
        if name == "failed.csv":  # what was set aside after two kills in one place
            continue
        if any(part in name for part in _GROWING):
            good = _can_be_read(out / name)
        elif "failed.csv" in found and name in ("predictions.csv", "report.html"):  # then of the other cases
            lines = content.splitlines()
            good = lines[-1:] == [b"</html>"] or set(lines) <= set(expected[name].splitlines())
        else:
            good = content == expected.get(name)
        promises["no half file behind a kill"].test(good, f"{task.name}: {name} after a kill at {at:.2f} s")


def _can_be_read(path: Path) -> bool:
    import json
    import zipfile

    try:
        if path.suffix == ".pt":
            return zipfile.ZipFile(path).testzip() is None
        return path.suffix != ".json" or bool(json.loads(path.read_text()))
    except (ValueError, zipfile.BadZipFile):
        return False


def _finish(task: Task, out: Path, expected: dict[str, bytes], said: Path, promises: Promises) -> None:
    grow_old(out)
    last = run(task.work(out, False), said)
    words = last.words
    if "set aside" in words:
        promises["cases set aside after kills in one place are done with --retry"].test(True, "")
        last = run(task.work(out, True), said)
    promises["the run that is let finish ends well"].test(last.code == 0, f"{task.name}: {_end_of(last)}")
    found = results(out)
    _each(promises["nothing lost"], task, sorted(set(expected) - set(found)), len(expected))
    _each(promises["nothing more"], task, sorted(set(found) - set(expected)), len(expected))
    different = [name for name in expected if name in found and found[name] != expected[name]]
    _each(promises["byte-identical to the undisturbed run, times apart"], task, different, len(expected))
    _each(promises["nothing twice"], task, made_twice(out), len(expected))
    _each(promises["nothing left half-written, no lock of a dead run"], task, leftovers(out), 1)


def _each(promise, task: Task, broken: list[str], tried: int) -> None:
    promise.tried += tried
    promise.broken += [f"{task.name}: {name}" for name in broken]


def _end_of(fork: Fork) -> str:
    return f"code {fork.code}: " + " | ".join(fork.words.strip().splitlines()[-4:])[-600:]
