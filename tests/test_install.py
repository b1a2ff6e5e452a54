"""What a wheel holds, and whose environments its requirements fit into."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from monai_mil.runs import shipped_bundles, shipped_files
from tests.conftest import ROOT

# Pins of the environments beside which this package is installed, as they were found to work together.
LABEL = {
    "torch": "2.13.0", "monai": "1.6.1", "numpy": "2.4.6", "pydicom": "2.4.5", "pytorch-ignite": "0.5.5",
    "openslide-python": "1.4.7", "openslide-bin": "4.0.1.2", "cucim-cu12": "26.10.0", "itk-io": "5.4.7",
    "fire": "0.7.1", "lazy-loader": "0.6", "filelock": "4.2.11", "typer": "0.29.2", "rich": "15.0.0",
}  # fmt: skip
DEPLOY = {
    "torch": "2.13.0", "monai": "1.6.1", "pydicom": "3.0.2", "highdicom": "0.28.2", "python-gdcm": "3.2.6",
    "cucim-cu13": "26.10.0", "openslide-python": "1.4.7", "openslide-bin": "4.0.1.2", "packaging": "25.0",
    "numpy": "2.4.6", "pillow": "12.0.0", "nibabel": "5.4.2",
}  # fmt: skip


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build writes beside what it builds
    for name in ("monai_mil", "bundles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # No isolation: the build needs no network where setuptools is here.
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


def requirements(project: dict, *extras: str) -> dict[str, Requirement]:
    """What the package requires with some extras on this Python, extras within extras included."""
    entries, open_extras = list(project["dependencies"]), list(extras)
    while open_extras:
        entries += project["optional-dependencies"][open_extras.pop()]
    needed: dict[str, Requirement] = {}
    for requirement in map(Requirement, entries):
        if canonicalize_name(requirement.name) == "monai-mil":
            needed |= requirements(project, *requirement.extras)
        elif requirement.marker is None or requirement.marker.evaluate(default_environment()):
            needed[canonicalize_name(requirement.name)] = requirement
    return needed


@pytest.mark.parametrize(
    ("pins", "extras"),
    [(LABEL, ()), (LABEL, ("cucim12", "itk")), (DEPLOY, ()), (DEPLOY, ("cucim13", "dicom"))],
    ids=["label", "label with extras", "deploy", "deploy with extras"],
)
def test_nothing_that_is_there_has_to_change_for_it(project, pins, extras):
    needed = requirements(project, *extras)
    refused = {
        name: f"{version} is there, {needed[name].specifier} is asked for"
        for name, version in pins.items()
        if name in needed and version not in needed[name].specifier
    }
    assert not refused


def test_cuda_packages_come_with_extras_alone(project):
    assert not [name for name in requirements(project) if name.startswith(("cucim", "cupy", "nvidia"))]
    assert {"cucim-cu12"} <= set(requirements(project, "gpu12"))
    assert not [name for name in requirements(project, "gpu13") if "cu12" in name or "12x" in name]


def test_every_room_and_every_file_of_the_bundles_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "monai_mil").rglob("*.py*") if path.suffix != ".pyc"
    }
    assert modules <= packed
    for bundle in shipped_bundles():
        files = {f"monai_mil_bundles/{bundle.name}/{path.relative_to(bundle.root)}" for path in shipped_files(bundle)}
        assert files <= packed, files - packed
    assert {path for path in packed if path.endswith(".j2")} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "monai_mil").rglob("*.j2")
    }
    assert wheel.stat().st_size < 10e6


def test_bundles_are_found_in_an_installed_package_that_nobody_can_write(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for path in site.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from monai_mil.runs import find_bundle, predict_run, train_run\n"
        "import pathlib; out = pathlib.Path(sys.argv[2])\n"
        "bundle = find_bundle('pathology_asmil'); print(bundle.root, bundle.is_shipped)\n"
        "(out / 'cohort.csv').write_text('slide_id,label,split\\nS-1,a,train\\nS-2,b,val\\n')\n"
        "for run in (predict_run(bundle, [out], out), train_run(bundle, out, out)):\n"
        "    print([value for value in run.settings.values() if str(value).startswith(sys.argv[1])])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(site), str(tmp_path)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{site}/monai_mil_bundles/pathology_asmil True", "[]", "[]"]
