"""Two processes tell of the patients of both, and each knows the whole's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import run_together


@pytest.mark.usefixtures("fork_server")
def test_two_processes_tell_of_the_patients_of_both(tmp_path: Path) -> None:
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        done = run_together(Path(__file__).with_name("run_survival.py"), folder, processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "survival.json").read_text()) for name in ("1", "2"))
    assert two["patients"] == one["patients"] == 7
    assert two["concordance"] == pytest.approx(one["concordance"])
    alone, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("1/key_0.json", "2/key_0.json", "2/key_1.json")
    )
    assert first == second == pytest.approx(alone)
    assert first["concordance"] == pytest.approx(one["concordance"]["value"])
    assert first["attention_jsd"] > 1e-4
    curves = [json.loads((tmp_path / n / "attention_stability.json").read_text())["epochs"] for n in ("1", "2")]
    assert [epoch["cases"] for epoch in curves[1]] == [14, 14]
    assert curves[1][1] == pytest.approx(curves[0][1])
