"""A disk that keeps what was flushed and nothing else, made of the flushes of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path


def noting_flushes(work: Callable[[], object], log: Path) -> Callable[[], None]:
    """``work``, which writes down every file and folder whose content it flushes, for :func:`kept_by_disk`."""

    def noted() -> None:
        fsync = os.fsync

        def flush(handle: int) -> None:
            fsync(handle)
            place = Path(f"/proc/self/fd/{handle}").readlink()
            number = os.fstat(handle).st_ino
            if place.is_dir():
                names = {entry.name: entry.inode() for entry in os.scandir(place)}
                line: dict[str, object] = {"folder": number, "names": names}
            else:
                line = {"file": number, "content": place.read_bytes().hex()}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")

        os.fsync = flush
        work()

    return noted


def kept_by_disk(log: Path, folder: Path) -> dict[str, bytes]:
    """Content of the files below a folder, by their paths in it, that a power cut at the end of the log leaves."""
    contents: dict[int, bytes] = {}
    names: dict[int, dict[str, int]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if "folder" in entry:
            names[entry["folder"]] = entry["names"]
        else:
            contents[entry["file"]] = bytes.fromhex(entry["content"])
    found: dict[str, bytes] = {}
    waiting = [("", folder.stat().st_ino)]
    while waiting:
        place, number = waiting.pop()
        for name, inner in names.get(number, {}).items():
            path = f"{place}{name}"
            if inner in names or (folder / path).is_dir():
                waiting.append((f"{path}/", inner))
            else:
                found[path] = contents.get(inner, b"")
    return found
