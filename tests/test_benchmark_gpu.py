"""The benchmark of a GPU runs as it is written, on the CPU and on next to nothing."""

import dataclasses
import importlib

import pytest

from tests.conftest import ROOT


def test_the_gpu_s_benchmark_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    gpu = importlib.import_module("benchmarks.gpu")
    sizes = dataclasses.replace(
        gpu.SMALL, slide=1024, batch=4, encoders={"resnet18": (4, None)}, insight=(2, 8), abmil=20, transmil=20
    )
    figures = {figure.name.strip(): figure for figure in gpu.run("cpu", sizes)}
    assert "resnet18 in float32 alone" in figures
    assert "slide to features, of the encoder" in figures
    assert all(figure.value > 0 and figure.target is None for figure in figures.values())
    assert gpu.LARGE.encoders.keys() >= {"resnet50", "uni", "virchow2", "h_optimus_1"}
