"""Fixtures every room's tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MONAI_MIL_SHARED", ROOT.parent / "shared"))


def shared(relative: str) -> Path:
    """A file or folder of the reference data kept beside the project; skips the test where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"reference data '{relative}' is absent; set MONAI_MIL_SHARED to the folder that holds it")
    return path
