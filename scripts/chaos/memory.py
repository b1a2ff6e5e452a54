"""Memory and open files of long runs: the last tenth of a run takes what the first tenth took."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chaos.forks import Fork, monai_mil, start
from chaos.materials import Materials
from chaos.promises import Promises

_MORE = 1.05
_EVERY = 0.1
"""Seconds between two looks at a run."""


def memory(made: Materials, folder: Path, tiles: int, slides: int, bags: int) -> Promises:
    """Embed a slide of so many tiles, so many slides with two workers, and predict so many bags."""
    promises = Promises()
    out = folder / "out"
    for count, what, prepare, begun in (
        (tiles, "one slide of {} tiles", partial(_one_slide, folder), ".partial/*.rows"),
        (slides, "{} slides with --workers 2", partial(_many_slides, made, folder), "*.h5"),
        (bags, "prediction of {} bags", partial(_many_bags, made, folder), "predictions.partial.csv"),
    ):
        if count == 0:
            continue
        shutil.rmtree(out, ignore_errors=True)
        what = what.format(count)
        fork = start(prepare(out, count), folder / "said.txt")
        looks = _looks(fork, lambda pattern=begun: any(out.glob(pattern)))
        promises["the run ends well"].test(fork.code == 0, f"{what}: {fork.words[-400:]}")
        _compare(what, np.array(looks), promises)
    return promises


def _compare(what: str, looks: np.ndarray, promises: Promises) -> None:
    promises["the run is long enough to tell"].test(len(looks) >= 20, what)
    if len(looks) < 20:
        return
    tenth = len(looks) // 10
    first, last = looks[:tenth].mean(axis=0), looks[-tenth:].mean(axis=0)
    for column, name, unit in ((0, "MiB of memory", 1 << 20), (1, "open files", 1)):
        promise = promises[f"{what}: {name} in the last tenth within 5 % of the first"]
        promise.note = f"{first[column] / unit:.1f}, then {last[column] / unit:.1f}"
        promise.test(last[column] <= _MORE * first[column], promise.note)


def _looks(fork: Fork, has_begun: Callable[[], bool]) -> list[tuple[int, int]]:
    """Memory of its own, in bytes, and open files of a run and its workers, from its first result on."""
    found = []
    while fork.wait(_EVERY) is None:
        if found or has_begun():
            found.append(_look(fork.process))
    return found


def _look(session: int) -> tuple[int, int]:
    used = files = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, StopIteration):
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                lines = (process / "status").read_text().splitlines()
                used += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
                files += sum(1 for _ in (process / "fd").iterdir())
    return used, files


class _Means:
    """The mean colours of tiles as features."""

    name, digest, width, grid, tile_size, target_mpp = "means", "m0", 3, None, 16, 0.5

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cpu")

    def __call__(self, tiles: Any) -> Any:
        return tiles.flatten(2).float().mean(dim=2).half()


def _one_slide(folder: Path, out: Path, tiles: int) -> Callable[[], None]:
    from monai_mil.slides import write_pyramid

    side = _Means.tile_size * int(np.ceil(np.sqrt(tiles)))
    slide = folder / "large.tif"
    if not slide.exists():
        band = np.random.default_rng(0).integers(90, 200, (64, side // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        band[:, :, 1] //= 2
        rows = (band[: min(256, side - start)] for start in range(0, side, 256))
        write_pyramid(slide, rows, mpp=0.5, size=(side, side))

    def work() -> None:
        from monai_mil.embedding import embed_cohort

        report = embed_cohort(slide, out, _Means(), progress=False)
        if report.failed:
            raise SystemExit(report.failed[0].error)

    return work


def _many_slides(made: Materials, folder: Path, out: Path, count: int) -> Callable[[], None]:
    with made.slides.open(newline="") as file:
        sources = [made.slides.parent / row["path"] for row in csv.DictReader(file)]
    table = folder / "many.csv"
    lines = (f"S-{number},{sources[number % len(sources)]}" for number in range(count))
    table.write_text("\n".join(("slide_id,path", *lines)) + "\n")
    return monai_mil("embed", table, "--out", out, "--workers", 2)


def _many_bags(made: Materials, folder: Path, out: Path, count: int) -> Callable[[], None]:
    sources = sorted((made.bags / "bags").glob("*.h5"))
    many = folder / "many"
    many.mkdir(exist_ok=True)
    for number in range(count):
        shutil.copy(sources[number % len(sources)], many / f"B-{number}.h5")
    return monai_mil("predict", "mil_baselines", many, "--model", made.model, "--out", out, "--heatmaps", "geojson")
