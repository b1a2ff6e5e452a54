"""``required_packages_version`` of the bundles is what predicting raw slides and scans imports.

``scripts/prove_environments.py`` runs the bundles where nothing else is installed.
"""

from __future__ import annotations

import json
from importlib.metadata import packages_distributions

import pytest
from packaging.utils import canonicalize_name

from tests import processes
from tests.bundles.common import NAMES, metadata

# Predicts sys.argv[1] with the bundles behind it, and writes what the modules of monai_mil import.
PROGRAM = """
import builtins, json, pathlib, sys
found, real = set(), builtins.__import__
def recorded(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (globals or {}).get("__name__", "").partition(".")[0] == "monai_mil":
        found.add(name.partition(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = recorded
from monai_mil.cli import app
for name in sys.argv[2:]:
    assert app(["predict", name, sys.argv[1], "--out", name], standalone_mode=False) == 0
pathlib.Path("found.json").write_text(json.dumps(sorted(found)))
"""
# Not in the list: what has a key of its own in the metadata, and what jinja2 is made of.
ELSEWHERE = {"monai", "monai-mil", "torch", "numpy", "markupsafe"}
# In the list although no module of monai_mil imports it for the files below, and why.
NEEDED = {
    "slides": {
        "fire": "python -m monai.bundle",
        "openslide-bin": "the library of openslide-python",
        "pydicom": "DICOM slides",
        "scikit-image": "slides in CIELAB",
    },
    "scans": {"fire": "python -m monai.bundle", "python-gdcm": "pydicom's decoders of compressed series"},
}
# Imported where it is there, and not missed where it is not.
WELCOME = {"slides": set(), "scans": {"imagecodecs"}}  # faster checksums


def slides(folder):
    from monai_mil.synthetic import make_slide_cohort

    make_slide_cohort(folder, num_slides=2, size=(1024, 1024), fractions=(1, 0, 0))
    return folder / "slides" / "slide_000.tif"


def scans(folder):
    from monai_mil.synthetic import make_scan_cohort

    make_scan_cohort(folder, num_scans=2, slices=(8, 8), size=128, slice_mm=12.0, fractions=(1, 0, 0))
    return next((folder / "scans").iterdir())


@pytest.mark.parametrize("make", [slides, scans])
def test_what_is_declared_is_what_is_imported(make, tmp_path):
    reads = make.__name__
    names = [name for name in NAMES if name.startswith("ct_") == (reads == "scans")]
    (declared,) = {tuple(sorted(metadata(name)["required_packages_version"])) for name in names}
    done = processes.run("-c", PROGRAM, make(tmp_path / reads), *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    modules, owners = json.loads((tmp_path / "found.json").read_text()), packages_distributions()
    imported = {canonicalize_name(owner) for module in modules for owner in owners.get(module, ())}
    assert {canonicalize_name(package) for package in declared} == (
        imported | NEEDED[reads].keys()
    ) - ELSEWHERE - WELCOME[reads]
