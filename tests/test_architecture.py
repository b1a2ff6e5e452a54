"""The rules of the house: which room may import which, and what importing the package may cost."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run_alone

PACKAGE = ROOT / "monai_mil"

# A room may import itself, `errors`, and what stands here. A new room fails the test below until it has its line.
MAY_IMPORT = {
    "slides": set(),
    "scans": set(),
    "encoders": {"slides", "scans"},
    "networks": set(),
    "losses": {"networks"},
    "metrics": {"networks"},
    "bags": {"slides", "scans", "encoders"},
    "training": {"networks", "losses", "metrics", "bags"},
    "heatmaps": {"slides", "scans", "encoders", "bags", "networks", "metrics"},
    "dicom": {"slides", "scans", "heatmaps"},
    "label": {"slides", "scans", "encoders", "bags", "networks", "losses", "training", "metrics", "heatmaps", "dicom"},
    "deploy": {"slides", "scans", "encoders", "bags", "networks", "losses", "training", "metrics", "heatmaps", "dicom"},
}
FACES = {"label", "deploy", "cli", "demo"}
NO_PIXELS = {"networks", "losses", "metrics"}
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


def imported(path: Path) -> set[str]:
    """Dotted names of every module that ``path`` imports, at any depth, relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported_by(path: Path) -> set[str]:
    known = set(rooms()) | FACES
    parts = (name.split(".") for name in imported(path))
    return {part[1] for part in parts if len(part) > 1 and part[0] == "monai_mil" and part[1] in known}


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_rooms_to_its_left(room):
    assert room in MAY_IMPORT, f"room '{room}' has no line in MAY_IMPORT: say what it may import"
    for path in (PACKAGE / room).rglob("*.py"):
        too_much = rooms_imported_by(path) - MAY_IMPORT[room] - {room}
        assert not too_much, f"{path.relative_to(ROOT)} imports {sorted(too_much)}"


@pytest.mark.parametrize("room", sorted(NO_PIXELS))
def test_networks_losses_and_metrics_know_no_pixels(room):
    for path in (PACKAGE / room).rglob("*.py"):
        libraries = {name.split(".")[0] for name in imported(path)}
        assert not libraries & PIXEL_LIBRARIES, f"{path.relative_to(ROOT)} imports {libraries & PIXEL_LIBRARIES}"


def test_nothing_imports_a_face():
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        faces = rooms_imported_by(path) & (FACES - {own} - ({"demo"} if own == "cli" else set()))
        assert not faces, f"{path.relative_to(ROOT)} imports the face {sorted(faces)}"


DOORS = ["", *(f".{room}" for room in rooms())]


@pytest.fixture(scope="module")
def loaded():
    """The heavy libraries that importing each room loads, each in a fork of a process that has imported torch."""
    code = (
        "import os, sys, torch\n"
        f"for room in {DOORS}:\n"
        "    if os.fork() == 0:\n"
        "        __import__(f'monai_mil{room}')\n"
        f"        sys.exit(print(f'monai_mil{{room}}', *sorted({HEAVY_LIBRARIES} & set(sys.modules))))\n"
        "    assert os.wait()[1] == 0, room\n"
    )
    done = run_alone("-c", code)
    assert done.returncode == 0, done.stderr
    return {room: libraries for room, *libraries in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("room", DOORS)
def test_importing_a_room_loads_no_heavy_library(room, loaded):
    """torch is what most rooms are made of; everything else that is slow waits until it is used."""
    libraries = loaded[f"monai_mil{room}"]
    if room in (".training", ".losses"):  # built on MONAI's engines and loss classes
        assert set(libraries) <= {"monai"} or room == ".training"
    else:
        assert libraries == []
