"""scripts/validate_dicom.sh with stand-ins for the programs it asks."""

import os
import subprocess
import sys

import pytest

from monai_mil.dicom import Finding, scan_source, write_report
from monai_mil.scans import load_scan
from tests.conftest import ROOT
from tests.dicom.examples import ALGORITHM, plain_series


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    frame = load_scan(plain_series(folder / "series", n=2)).frame
    write_report(folder / "out" / "sr.dcm", scan_source(frame), [Finding("positive", 0.8, True)], ALGORITHM)
    return folder / "out"


def validate(out, tools, **programs):
    """Exit code and lines; ``programs`` are what stand-ins say."""
    tools.mkdir()
    for name in ("bash", "grep", "sed", "wc", "cut", "cat", "mktemp", "rm", "mkdir", "basename", "xargs", "find"):
        place = next(folder for folder in ("/usr/bin", "/bin") if os.access(f"{folder}/{name}", os.X_OK))
        (tools / name).symlink_to(f"{place}/{name}")
    for name, said in programs.items():
        (tools / name).write_text(f"#!/bin/bash\necho '{said}' >&2\n")
        (tools / name).chmod(0o755)
    line = [ROOT / "scripts" / "validate_dicom.sh", out]
    environment = {"PATH": str(tools), "PYTHON": sys.executable}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_absent_programs_are_named(out, tmp_path):
    code, said = validate(out, tmp_path / "bin")
    assert code == 0
    assert said == "not asked, for they are not installed: dciodvfy dsrdump java tid1500reader\n"


def test_an_error_ends_with_1_and_one_that_is_none_does_not(out, tmp_path):
    code, said = validate(out, tmp_path / "bin", dciodvfy="Error - Missing attribute Type 1 Element=<Modality>")
    assert code == 1
    assert "dciodvfy sr.dcm (SR): 1 errors\n    Error - Missing attribute" in said
    known = "Error - Only valid for AnnotationCoordinateType of 3D - attribute <CommonZCoordinateValue> = <>"
    assert validate(out, tmp_path / "other", dciodvfy=known)[0] == 0
