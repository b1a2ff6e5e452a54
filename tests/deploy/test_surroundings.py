"""What an application needs around it: a user's name, the CUDA runtime, and the versions that were tested."""

from __future__ import annotations

import getpass
import os
import sys

from monai_mil.deploy import cuda_runtime, prepare_process
from tests.conftest import ROOT


def pins(text: str) -> dict[str, str]:
    lines = [line.partition("==") for line in text.splitlines() if "==" in line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, _, version in lines}


def test_a_user_whom_no_passwd_file_knows_has_a_name(monkeypatch):
    def unknown():
        if "USER" not in os.environ:
            raise KeyError("getpwuid(): uid not found: 4711")
        return os.environ["USER"]

    monkeypatch.setenv("USER", "somebody")  # so that it is put back
    monkeypatch.delenv("USER")
    monkeypatch.setenv("HOLOSCAN_LOG_LEVEL", "INFO")
    monkeypatch.setattr(getpass, "getuser", unknown)
    prepare_process()
    assert getpass.getuser() == "monai-mil"
    assert os.environ["HOLOSCAN_LOG_LEVEL"] == "INFO"


def test_the_cuda_runtime_of_a_wheel_is_found(tmp_path, monkeypatch):
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda_runtime() is None
    library.touch()
    assert cuda_runtime() == library


def test_the_environment_has_the_versions_that_everything_else_is_tested_with():
    named, _, _ = (ROOT / "monai_mil" / "deploy" / "requirements.txt").read_text().partition("\n\n")
    own, tested = pins(named), pins((ROOT / "constraints.txt").read_text())
    assert {name: version for name, version in own.items() if tested.get(name, version) != version} == {}
    assert {"torch", "monai", "pydicom", "highdicom", "python-gdcm", "openslide-bin"} <= set(own) & set(tested)
