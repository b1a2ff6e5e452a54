"""Dask's workers: started here where there is no scheduler, and none of their failures ends the run."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from monai_mil.embedding.dask import embed_with_dask
from monai_mil.embedding.slide import EmbedSettings
from monai_mil.embedding.slide_job import SlideJob


def test_without_dask_several_workers_are_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"several workers need Dask: pip install 'monai-mil\[scale\]'"):
        next(embed_with_dask({}, "texture"))


def test_a_worker_that_has_no_encoder_fails_its_cases_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    in_threads = partial(distributed.LocalCluster, processes=False)  # a process would take seconds to start
    monkeypatch.setattr(distributed, "LocalCluster", in_threads)
    jobs = {
        number: SlideJob(f"S-{number}", tmp_path / f"{number}.svs", tmp_path, "cpu", False, EmbedSettings(256, 0.5), 8)
        for number in (3, 5)
    }
    found = dict(embed_with_dask(jobs, "no such encoder"))
    assert {number: (result.case_id, result.status) for number, result in found.items()} == {
        3: ("S-3", "failed"),
        5: ("S-5", "failed"),
    }
    for number, result in found.items():
        assert result.error is not None
        assert result.error.startswith(f"slide '{tmp_path / str(number)}.svs': its worker was lost (")
        assert "no such encoder" in result.error
        assert result.error.endswith("run again to go on where it stopped")
