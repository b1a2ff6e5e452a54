"""The rules of the house: which room may import which, and what importing the package may cost."""

import ast
import graphlib
import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.processes import run_alone

PACKAGE = ROOT / "monai_mil"

# A room may import itself, the root modules, and what stands here. A new room fails the tests until it has its line.
MAY_IMPORT = {
    "slides": set(),
    "scans": set(),
    "encoders": {"slides", "scans"},
    "networks": set(),
    "losses": {"networks"},
    "metrics": {"networks"},
    "bags": {"slides", "scans", "encoders", "networks"},
    "cohorts": {"slides", "scans"},
    "embedding": {"bags", "cohorts", "encoders", "slides", "scans"},
    "synthetic": {"bags", "cohorts", "embedding", "slides", "scans"},
    "datasets": {"cohorts", "bags", "slides", "scans"},
    "training": {"networks", "losses", "metrics", "bags"},
    "heatmaps": {"slides", "scans", "encoders", "bags", "networks", "metrics"},
    "dicom": {"slides", "scans", "heatmaps"},
    "savers": {"heatmaps", "dicom", "metrics", "networks", "bags", "slides", "scans"},
    "reports": {"heatmaps", "metrics", "slides", "scans"},
}
ALL = set(MAY_IMPORT)
MAY_IMPORT |= {
    "runs": ALL,
    "label": ALL | {"runs"},
    "deploy": ALL | {"runs"},
    "compare": ALL | {"runs"},
}
ROOT_MODULES = {
    "cells",
    "checksum",
    "errors",
    "files",
    "folders",
    "identity",
    "interrupts",
    "leftovers",
    "locks",
    "model_card",
    "names",
    "sealed",
    "shipped",
}
FACES = {"label", "deploy", "compare", "cli", "demo"}
NO_PIXELS = {"networks", "losses", "metrics"}
# Rooms within a room that have a door of their own.
INNER_DOORS = {"networks.blocks", "networks.reference"}
PIXEL_LIBRARIES = {
    "cucim",
    "openslide",
    "tifffile",
    "cv2",
    "PIL",
    "skimage",
    "itk",
    "nibabel",
    "pydicom",
    "highdicom",
    "h5py",
}
HEAVY_LIBRARIES = {
    "monai",
    "cucim",
    "openslide",
    "timm",
    "torchvision",
    "transformers",
    "matplotlib",
    "skimage",
    "sklearn",
    "itk",
    "highdicom",
    "gdcm",
}


def rooms() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@cache
def imports_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def imported(path: Path, names: bool = True) -> frozenset[str]:
    """Dotted names of every module that ``path`` imports, at any depth, relative imports resolved.

    With ``names`` what is imported from a module counts too, for it may be a module itself.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found |= {module} | ({f"{module}.{alias.name}" for alias in node.names} if names else set())
    return frozenset(found)


def own_imports(path: Path, names: bool = True) -> set[str]:
    """Of what ``path`` imports, what is of this package, without its name in front."""
    return {name.removeprefix("monai_mil.") for name in imported(path, names) if name.startswith("monai_mil.")}


def rooms_imported_by(path: Path) -> set[str]:
    known = set(rooms()) | FACES
    return {name.split(".")[0] for name in own_imports(path)} & known


def door(module: str) -> str:
    """What another room imports a module's names from: its room, or the door within the room."""
    return next((inner for inner in INNER_DOORS if f"{module}.".startswith(f"{inner}.")), module.split(".")[0])


def modules() -> set[str]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}


def past_the_door(here: str, imports: set[str], known: set[str]) -> set[str]:
    """Of the modules that the module ``here`` imports, those of other rooms that are not these rooms' doors.

    Within one room every module may import every other; ``blocks`` and ``reference`` are entered by their doors, and
    import the rest of ``networks`` module by module, because its own door imports them.
    """
    inner = door(here) in INNER_DOORS
    return {
        name
        for name in imports & known - ROOT_MODULES
        if name != door(name) and door(name) != door(here) and not (inner and door(name) == here.split(".")[0])
    }


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_rooms_to_its_left(room):
    assert room in MAY_IMPORT, f"room '{room}' has no line in MAY_IMPORT: say what it may import"
    for path in (PACKAGE / room).rglob("*.py"):
        too_much = rooms_imported_by(path) - MAY_IMPORT[room] - {room}
        assert not too_much, f"{path.relative_to(ROOT)} imports {sorted(too_much)}"


def test_contributing_has_this_table():
    rows = re.findall(
        r"^\| `(\w+)`( \(planned\))? \| .+ \|(.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    told: dict[str, set[str]] = {}
    for room, _, imports in rows:
        above = set(told) if "all above" in imports else set()
        named = set(re.findall(r"`(\w+)`", imports))
        told[room] = (above - FACES if named else above) | named
    assert told == MAY_IMPORT
    assert {room for room, planned, _ in rows if not planned} == set(rooms())


def test_the_table_has_no_circle():
    order = graphlib.TopologicalSorter(MAY_IMPORT).static_order()
    assert set(order) == set(MAY_IMPORT)


@pytest.mark.parametrize("room", ["", *rooms()])
def test_a_room_is_entered_through_its_door_only(room):
    known = modules()
    for path in (PACKAGE / room).rglob("*.py") if room else PACKAGE.glob("*.py"):
        here = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        windows = past_the_door(here, own_imports(path, names=False), known)
        assert not windows, f"{path.relative_to(ROOT)} imports {sorted(windows)}: import its names from the room"


def test_what_steps_past_a_door_is_seen():
    known = {"heatmaps.heatmap", "savers.case", "networks.contract", "networks.blocks.tree", "files"}
    assert past_the_door("savers.dice", known | {"heatmaps", "networks.blocks"}, known) == known - {
        "savers.case",
        "files",
    }
    assert past_the_door("networks.hagmil", known, known) >= {"networks.blocks.tree"}
    assert past_the_door("networks.blocks.nystrom", {"networks.contract", "networks.blocks.tree"}, known) == set()


@pytest.mark.parametrize("room", sorted(NO_PIXELS))
def test_networks_losses_and_metrics_know_of_the_root_their_errors_only(room):
    for path in (PACKAGE / room).rglob("*.py"):
        found = {name.split(".")[0] for name in own_imports(path)} & ROOT_MODULES
        assert found <= {"errors"}, f"{path.relative_to(ROOT)} imports {sorted(found)}"


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_of_a_room_is_there_and_no_module_of_its_own_name_hides_it(room):
    face = importlib.import_module(f"monai_mil.{room}")
    for name in face.__all__:
        assert not isinstance(getattr(face, name), ModuleType), f"monai_mil.{room}.{name} is a module"
    lazy = (PACKAGE / room / "__init__.pyi").exists()
    hidden = set(face.__all__) & {path.stem for path in (PACKAGE / room).glob("*.py")} if lazy else set()
    assert not hidden, f"importing monai_mil.{room}.{sorted(hidden)} as modules would hide the names in its door"


@pytest.mark.parametrize("room", sorted(NO_PIXELS))
def test_networks_losses_and_metrics_know_no_pixels(room):
    for path in (PACKAGE / room).rglob("*.py"):
        libraries = {name.split(".")[0] for name in imported(path)}
        assert not libraries & PIXEL_LIBRARIES, f"{path.relative_to(ROOT)} imports {libraries & PIXEL_LIBRARIES}"


def test_only_the_command_line_imports_a_face():
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        faces = rooms_imported_by(path) & ({"cli"} if own == "cli" else FACES - {own})
        assert not faces, f"{path.relative_to(ROOT)} imports the face {sorted(faces)}"


DOORS = ["", *(f".{room}" for room in rooms())]


USES = {
    "embedding slides": "import monai_mil.embedding.slides",
    "embedding scans": "import monai_mil.embedding.scans",
    "a bag in chunks": "from monai_mil.networks import ABMIL; ABMIL(4, 2).pool_chunks([torch.ones(3, 4)])",
    "texture": (
        "from monai_mil.encoders import get_encoder; "
        "get_encoder('texture')(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))"
    ),
}


@pytest.fixture(scope="module")
def loaded():
    """What importing each room and each of ``USES`` loads of these, each in a fork of one that has imported torch."""
    uses = {f"monai_mil{room}": f"import monai_mil{room}" for room in DOORS} | USES
    code = (
        "import os, sys, torch\n"
        f"for name, code in {uses}.items():\n"
        "    if os.fork() == 0:\n"
        "        exec(code)\n"
        f"        print(name, *sorted({HEAVY_LIBRARIES | {'cv2'}} & set(sys.modules)), sep=',', flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0, name\n"
    )
    done = run_alone("-c", code)
    assert done.returncode == 0, done.stderr
    return {name: set(libraries) for name, *libraries in (line.split(",") for line in done.stdout.splitlines())}


@pytest.mark.parametrize("room", DOORS)
def test_importing_a_room_loads_no_heavy_library(room, loaded):
    """torch is what most rooms are made of; everything else that is slow waits until it is used."""
    assert not loaded[f"monai_mil{room}"] & HEAVY_LIBRARIES


@pytest.mark.parametrize("use", USES)
def test_what_needs_torch_alone_loads_neither_monai_nor_timm(use, loaded):
    others = {"torchvision", "sklearn", "cv2"} if use == "texture" else set()
    assert not loaded[use] & ({"monai", "timm"} | others)
