"""What monai-mil promises, put to the test: killed, cut off, crowded, cramped and lied to.

    python scripts/chaos.py kills --count 300     # kill -9 at random moments
    python scripts/chaos.py fuzz --seed 1         # damaged files for every reader
    python scripts/chaos.py --help

Each command has a seed and a count, shows its promises as a table and ends with 1 if one is broken.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from chaos.materials import Materials
    from chaos.promises import Promises

Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Count = Annotated[int, typer.Option(min=1, help="How often; the default is the long form.")]
Folder = Annotated[Path | None, typer.Option(help="Where to work; kept.", show_default="a temporary one")]
Reference = Annotated[Path | None, typer.Option(help="Folder with reference slides in wsi/, to damage them too.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the table there too.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help=__doc__)
def _commands() -> None: ...


@app.command()
def kills(
    seed: Seed = 0,
    count: Count = 300,
    only: Annotated[list[str] | None, typer.Option(help="Some of the tasks, by their names.")] = None,
    folder: Folder = None,
    to_json: Json = None,
) -> None:
    """Kill embed, embed-scans, train, inference, predict and report at random moments; let them finish; compare."""
    _test(
        "kills",
        lambda place: _of("kills").kills(_made(place, seed), place, seed, count, only or []),
        folder,
        to_json,
    )


@app.command()
def power(
    seed: Seed = 0,
    count: Count = 20,
    simulated: Annotated[
        bool,
        typer.Option("--simulated", help="A disk made of the flushes alone; no image is mounted, which needs root."),
    ] = False,
    folder: Folder = None,
    to_json: Json = None,
) -> None:
    """Cut the power at moments up to 24 s after a run has succeeded; look what the disk holds."""
    _test(
        "power",
        lambda place: _of("power").power(_made(place, seed), place, seed, count, simulated),
        folder,
        to_json,
    )


@app.command()
def races(seed: Seed = 0, count: Count = 20, folder: Folder = None, to_json: Json = None) -> None:
    """Let four processes work in one folder at once."""
    _test("races", lambda place: _of("races").races(place, seed, count), folder, to_json)


@app.command()
def full(seed: Seed = 0, count: Count = 24, folder: Folder = None, to_json: Json = None) -> None:
    """Fill the disk, or take all its inodes, at any place of a run; needs root, for the small disks."""
    _test("full", lambda place: _of("full").full(place, seed, count), folder, to_json)


@app.command()
def names(
    seed: Seed = 0, count: Count = 200, reference: Reference = None, folder: Folder = None, to_json: Json = None
) -> None:
    """Plant a person's name in DICOM headers; look for it in all that is said and written."""
    _test("names", lambda place: _of("planted").names(place, seed, count, reference), folder, to_json)


@app.command()
def fuzz(
    seed: Seed = 0,
    count: Count = 5000,
    only: Annotated[list[str] | None, typer.Option(help="Some of the readers, as their names begin.")] = None,
    reference: Reference = None,
    folder: Folder = None,
    to_json: Json = None,
) -> None:
    """Damage slides, scans, bags, models, tables, masks and records in every way; read them."""
    _test("fuzz", lambda place: _of("fuzz").fuzz(place, seed, count, only or [], reference), folder, to_json)


@app.command()
def memory(
    tiles: Annotated[int, typer.Option(help="Of one slide; 0 for no such run.")] = 1_000_000,
    slides: Annotated[int, typer.Option(help="Embedded by two workers; 0 for no such run.")] = 500,
    bags: Annotated[int, typer.Option(help="Predicted; 0 for no such run.")] = 300,
    seed: Seed = 0,
    folder: Folder = None,
    to_json: Json = None,
) -> None:
    """Watch memory and open files of long runs."""
    _test("memory", lambda place: _of("memory").memory(_made(place, seed), place, tiles, slides, bags), folder, to_json)


def _made(place: Path, seed: int) -> Materials:
    from chaos.materials import Materials

    return Materials(place / "materials", seed)


def _of(name: str):
    """A module of ``chaos/``, once this process has imported what its forks need."""
    import importlib

    from chaos.forks import import_everything

    import_everything()
    return importlib.import_module(f"chaos.{name}")


def _test(name: str, test: Callable[[Path], Promises], folder: Path | None, to_json: Path | None) -> None:
    words = " ".join(word for word in sys.argv[1:] if word)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    console = Console(width=120)
    begun = time.monotonic()
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        promises = test(place.absolute())
    took = time.monotonic() - begun
    promises.show(f"chaos.py {words}: {date.today()}, {machine}, {took:.0f} s", console)
    if to_json is not None:
        record = {"command": words, "date": str(date.today()), "machine": machine, "seconds": round(took)}
        to_json.write_text(json.dumps(record | {"promises": promises.record()}, indent=4) + "\n")
    raise typer.Exit(0 if promises.all_kept else 1)


if __name__ == "__main__":
    app()
