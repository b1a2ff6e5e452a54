"""Cold start of the application for CT, from nothing to ``status.json``, beside importing torch, MONAI and the SDK.

CPU time of fresh processes of ``.venv-deploy`` (``scripts/setup.sh deploy``), in turn, the least of three each.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.harness import Figure

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = _ROOT / ".venv-deploy" / "bin" / "python"
_IMPORTS = """
from monai_mil.deploy import prepare_process
prepare_process()
import torch, monai, monai.bundle, monai.deploy.core
"""
_ROUNDS = 3


def run() -> list[Figure]:
    if not _PYTHON.exists():
        raise SystemExit("there is no .venv-deploy: run scripts/setup.sh deploy")
    from monai_mil.synthetic import make_scan_cohort

    with tempfile.TemporaryDirectory() as folder:
        make_scan_cohort(folder, num_scans=4, seed=1, slices=(30, 30), fractions=(0.5, 0.0, 0.5))
        series = next(Path(folder, "scans").iterdir())
        application = ("-m", "monai_mil.deploy", "ct", "-i", str(series), "-o", f"{folder}/out", "-m", "ct_insight")
        seconds = [(_cpu_seconds("-c", _IMPORTS), _cpu_seconds(*application)) for _ in range(_ROUNDS)]
    imports, whole = (min(column) for column in zip(*seconds, strict=True))
    return [
        Figure("application for CT, cold start to result, over the imports", whole / imports, "x", "<= 1.3"),
        Figure("  the application", whole, "s CPU"),
        Figure("  import torch, monai, monai.bundle, monai.deploy.core alone", imports, "s CPU"),
    ]


def _cpu_seconds(*arguments: str) -> float:
    before = os.times()
    subprocess.run(
        [str(_PYTHON), *arguments], check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(_ROOT)}
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
