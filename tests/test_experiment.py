"""The experiments of the docs, at a size that takes seconds."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def experiment(monkeypatch):
    """The experiment of Normal Guidance with one seed, one trained method and few scans."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import normal_guidance

    monkeypatch.setattr(normal_guidance, "SEEDS", (1001,))
    monkeypatch.setattr(normal_guidance, "SCANS", (64, 16, 16))
    monkeypatch.setattr(normal_guidance, "METHODS", {"ABMIL": normal_guidance.METHODS["ABMIL"]})
    return normal_guidance


def test_a_table_has_every_method_and_a_second_call_trains_nothing(experiment, tmp_path):
    table = experiment.run(tmp_path)
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert names == [
        "centre of the scan, rank",
        "centre of the scan, sigma 1",
        "best possible",
        "ABMIL",
        "slice labels, supervised",
    ]
    scan, slices, _ = (float(figure) for figure in table.splitlines()[4].split("|")[2].split("/"))
    assert scan > 0.8
    assert slices > 0.9
    models = sorted(tmp_path.rglob("model.pt"))
    written = [path.stat().st_mtime_ns for path in models]
    assert len(models) == 2
    assert experiment.run(tmp_path) == table
    assert [path.stat().st_mtime_ns for path in models] == written


def test_an_unknown_experiment_is_refused_with_the_known_ones():
    command = [sys.executable, ROOT / "scripts" / "experiment.py", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "normal_guidance" in done.stderr
    assert "two_lesions" in done.stderr
