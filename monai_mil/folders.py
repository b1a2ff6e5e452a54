"""Walking folders of slides and scans, whatever links and special files lie in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_RESULTS = {"predictions.csv", "predictions.partial.csv", "predict.jsonl"}
"""Any of these makes a folder that of a run's results, among which other files of ours are no slides or scans."""
_OURS = _RESULTS | {
    "bags.csv", "dice.json", "failed.csv", "localise.json", "metrics.csv", "metrics.json", "patients.csv",
    "predict.log", "report.html", "scans.csv", "slices.json", "survival.csv", "survival.json",
}  # fmt: skip
_OUR_FOLDERS = {"bags", "heatmaps", "slices"}


def walk_files(
    folder: Path, on_closed: Callable[[OSError], object], on_broken: Callable[[Path], object] | None = None
) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder at or below ``folder`` with its regular files, both sorted by name.

    Links are followed, but no folder is entered twice, so that a link to a folder above ends nowhere. Hidden folders
    (a file server's snapshots) are left out, and so are pipes and devices: opening them would wait for ever.
    ``on_closed`` is told of every folder that cannot be listed, which must not pass for an empty one, ``on_broken`` of
    every link that leads nowhere. What a run has written is left out, so that heatmaps below the scans that they were
    made of are not taken for scans.
    """
    entered: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=on_closed):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        has_results = not _RESULTS.isdisjoint(names)
        ours = _OUR_FOLDERS if has_results else set()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in ours)
        paths = [Path(parent, name) for name in sorted(names) if not (has_results and name in _OURS)]
        if on_broken is not None:
            for path in paths:
                if path.is_symlink() and not path.exists():
                    on_broken(path)
        yield Path(parent), [path for path in paths if path.is_file()]
