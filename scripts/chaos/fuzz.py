"""Damaged files for every reader: each is refused in the project's words, or read as what it was."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.forks import Fork, start
from chaos.mutations import mutated
from chaos.promises import Promises
from chaos.readers import Reader, all_readers

SECONDS = 20.0
MEMORY = 4 << 30
_AT_ONCE = 2
_SLOW_TO_IMPORT = ("scan MHA", "scan NRRD")
"""ITK takes seconds."""
FATAL = ("crash", "hang", "memory", "exception", "unnamed")


@dataclass
class Attempt:
    """One damaged file that is being read.

    ``used`` is what the fork took beyond what it inherited, in bytes.
    """

    reader: Reader
    number: int
    folder: Path
    fork: Fork
    begun: float


def fuzz(folder: Path, seed: int, count: int, only: list[str], reference: Path | None) -> Promises:
    """Read so many damaged files, of all readers in turn or of those whose names begin as ``only`` says."""
    shutil.rmtree(folder / "sound", ignore_errors=True)
    readers = [
        reader
        for reader in all_readers(folder / "sound", reference)
        if not only or any(reader.name.startswith(name) for name in only)
    ]
    for reader in readers:
        if reader.name in _SLOW_TO_IMPORT:  # once, here, and not in every fork
            write(reader, folder / "work" / "import", reader.files[reader.damaged])
            reader.read(folder / "work" / "import")
    sound = {reader.name: _sound(reader, folder) for reader in readers}
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    examples: dict[str, list[str]] = defaultdict(list)
    running: list[Attempt] = []
    numbers = iter(range(count))
    left = True
    while left or running:
        while left and len(running) < _AT_ONCE:
            number = next(numbers, None)
            if number is None:
                left = False
                break
            running.append(_attempt(readers[number % len(readers)], number, seed, folder))
        for attempt in running[:]:
            code = attempt.fork.wait(0)
            if code is None and time.monotonic() - attempt.begun < SECONDS + 2:
                continue
            outcome, told = _outcome(attempt, code, sound[attempt.reader.name])
            outcomes[attempt.reader.name][outcome] += 1
            if outcome in FATAL or outcome == "different":
                examples[f"{attempt.reader.name}: {outcome}"].append(f"number {attempt.number}: {told}")
                _keep(attempt, folder / "broken", outcome)
            shutil.rmtree(attempt.folder, ignore_errors=True)
            running.remove(attempt)
        time.sleep(0.001)
    return _promises(readers, outcomes, examples)


def damaged_file(reader: Reader, seed: int, number: int) -> bytes:
    """The damaged content of that number, the same for the same seed."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    made = mutated(reader.files[reader.damaged], rng, text=reader.text)
    return gzip.compress(made, 1) if reader.packed else made


def _attempt(reader: Reader, number: int, seed: int, folder: Path) -> Attempt:
    place = folder / "work" / str(number)
    write(reader, place, damaged_file(reader, seed, number))
    fork = start(_reading(reader, place), place.parent / f"{number}.txt", memory=_address_space() + MEMORY)
    return Attempt(reader, number, place, fork, time.monotonic())


def write(reader: Reader, place: Path, damaged: bytes) -> None:
    shutil.rmtree(place, ignore_errors=True)
    for name, content in reader.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged if name == reader.damaged else content)


def answer_of(reader: Reader, place: Path) -> dict[str, Any]:
    """What a reader makes of the files in a folder: ``found``, or what it was stopped by."""
    from monai_mil.errors import MonaiMILError

    try:
        return {"found": reader.read(place)}
    except MonaiMILError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"memory": "MemoryError"}
    except Exception as error:
        return {"exception": "".join(traceback.format_exception(error)[-3:])}


def _reading(reader: Reader, place: Path) -> Callable[[], None]:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS) + 1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = answer_of(reader, place)
        answer["used"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        (place / "answer.json").write_text(json.dumps(answer))

    return work


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _sound(reader: Reader, folder: Path) -> list[object]:
    """What the sound file says, and, of readers that heal, what is there without it."""
    content = reader.files[reader.damaged]
    found = []
    for damaged in (gzip.compress(content, 1) if reader.packed else content, None):
        place = folder / "work" / "sound"
        write(reader, place, damaged or b"")
        if damaged is None:
            (place / reader.damaged).unlink()
        fork = start(_reading(reader, place), folder / "said.txt")
        fork.wait(60)
        answer = json.loads((place / "answer.json").read_text())
        if damaged is not None and "found" not in answer:
            raise RuntimeError(f"{reader.name}: the sound file is not read: {answer}")
        if "found" in answer and (damaged is not None or reader.heals):
            found.append(answer["found"])
    return found


def _outcome(attempt: Attempt, code: int | None, sound: list[object]) -> tuple[str, str]:
    """What became of a damaged file, and in what words."""
    if code is None or code in (-24, -9):  # CPU time used up
        attempt.fork.kill()
        return "hang", attempt.fork.words[-300:]
    place = attempt.folder / "answer.json"
    if code != 0 or not place.exists():
        return "crash", f"code {code}: {attempt.fork.words[-600:]}"
    return judged(attempt.reader, json.loads(place.read_text()), attempt.folder, sound)


def judged(reader: Reader, answer: dict[str, Any], place: Path, sound: list[object]) -> tuple[str, str]:
    """What became of a damaged file that a reader gave an answer to, and in what words."""
    if answer.get("used", 0) > MEMORY or "memory" in answer:
        return "memory", f"{answer['used'] >> 20} MiB"
    if "exception" in answer:
        return "exception", answer["exception"]
    if "refused" in answer:
        told = answer["refused"]
        names = str(place) in told and "\n" not in told
        return ("refused", told) if names else ("unnamed", told[:500])
    found = answer["found"]
    if found == sound[0]:
        return "same", ""
    if reader.heals and (found in sound or (isinstance(found, list) and set(found) <= set(_all(sound)))):
        return "healed", ""
    return "different", "read as another content"


def _all(sound: list[object]) -> list[object]:
    return [one for found in sound if isinstance(found, list) for one in found]


def _keep(attempt: Attempt, folder: Path, outcome: str) -> None:
    if outcome == "different" and attempt.reader.unchecked:
        return
    folder.mkdir(exist_ok=True)
    name = f"{attempt.number}-{outcome}-{Path(attempt.reader.damaged).name}"
    shutil.copy(attempt.folder / attempt.reader.damaged, folder / name)


def _promises(readers: list[Reader], outcomes: dict[str, Counter[str]], examples: dict[str, list[str]]) -> Promises:
    promises = Promises()
    words = {
        "crash": "no crash",
        "hang": f"no hang above {SECONDS:.0f} s",
        "memory": f"nothing over {MEMORY >> 30} GB",
        "exception": "no exception that is no MonaiMILError",
        "unnamed": "every refusal is one line that names the file",
    }
    for reader in readers:
        found = outcomes[reader.name]
        for outcome, promise in words.items():
            promises[promise].tried += found.total()
            promises[promise].broken += [f"{reader.name}: {told}" for told in examples[f"{reader.name}: {outcome}"]]
        counts = ", ".join(f"{found[one]} {one}" for one in ("same", "healed", "refused", "different") if found[one])
        if reader.unchecked is None:
            own = promises[f"{reader.name}: nothing is taken for another content"]
            own.broken += examples[f"{reader.name}: different"]
            own.note = counts
        else:
            own = promises[f"{reader.name}: {reader.unchecked}"]
            own.note = counts
        own.tried += found.total()
    return promises
