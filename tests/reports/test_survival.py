"""The survival report: what it says, and its curves point for point."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from monai_mil.errors import CohortError
from monai_mil.files import write_json
from monai_mil.metrics import survival_report
from monai_mil.reports import write_survival_report
from monai_mil.reports.survival_chart import at_risk, survival_chart, time_ticks


def evaluation(folder: Path, n: int = 60, **options: object) -> Path:
    rng = np.random.default_rng(0)
    risk = rng.normal(size=n)
    time = np.round(30 * np.exp(-0.8 * risk) * rng.exponential(size=n), 1) + 0.1
    write_json(survival_report(risk, np.minimum(time, 60), time < 60, n=50, **options), folder / "survival.json")
    rows = [f"<p{i}>,{risk[i]:.3f},low,{time[i]:.1f},{int(time[i] < 60)}" for i in range(n)]
    (folder / "survival.csv").write_text("patient_id,risk,group,time,event\n" + "\n".join(rows) + "\n")
    return folder / "survival.json"


def test_the_page_tells_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    page = write_survival_report(path, tmp_path / "report.html", title="Cohort <A>", unit="months").read_text()
    report = json.loads(path.read_text())
    figure = report["concordance"]
    assert f"{figure['value']:.3f}" in page
    assert f"{figure['low']:.3f} to {figure['high']:.3f}" in page
    assert "Cohort &lt;A&gt;" in page
    assert "&lt;p59&gt;" in page
    assert f"60 patients followed, {report['events']} events" in page
    assert "(median of these patients)" in page
    assert not re.search(r"(src|href)=.?https?:", page)
    assert page.count('<polyline class="line') == 2


def test_three_given_groups_without_resamples(tmp_path: Path) -> None:
    path = evaluation(tmp_path, cutoffs=[-0.5, 50.0])
    report = json.loads(path.read_text())
    report["concordance"] |= {"low": None, "high": None}
    write_json(report, path)
    (tmp_path / "survival.csv").unlink()
    page = write_survival_report(path, tmp_path / "report.html").read_text()
    assert "chosen beforehand" in page
    assert "no interval" in page
    assert "<h2>Patients</h2>" not in page
    assert page.count('<polyline class="line') == 2  # the third group has no patients
    assert "intermediate risk" in page


def test_the_curves_of_attention_are_shown_too(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    assert "Stability of attention" not in write_survival_report(path, tmp_path / "report.html").read_text()
    epochs = [{"epoch": 1, "jsd": None, "effective_tiles": 9.0}, {"epoch": 2, "jsd": 1e-3, "effective_tiles": 8.0}]
    (tmp_path / "attention_stability.json").write_text(json.dumps({"epochs": epochs}))
    page = write_survival_report(path, tmp_path / "report.html").read_text()
    assert "Stability of attention" in page
    assert page.count('<polyline class="line') == 2 + 2
    other = (tmp_path / "attention_stability.json").rename(tmp_path / "other.json")
    page = write_survival_report(path, tmp_path / "report.html", stability={"<a>": other, "b": other}).read_text()
    assert "&lt;a&gt;</span>" in page
    assert page.count('<polyline class="line') == 2 + 4


def test_curves_step_where_patients_die_and_are_marked_where_they_are_censored() -> None:
    report = survival_report([2, 1], [10, 20], [1, 0], [0.0], n=0)
    chart = str(survival_chart(report["groups"], "months"))
    points = re.search(r'<polyline class="line s1" points="([^"]+)"', chart).group(1).split()
    corners = [tuple(map(float, point.split(","))) for point in points]
    left, middle, right = 50, 50 + 574 / 2, 50 + 574
    top, half = 10, 10 + 286 / 2
    assert corners == [
        pytest.approx(c) for c in [(left, top), (middle, top), (middle, half), (right, half), (right, half)]
    ]
    marks = re.search(r'<path class="line thin s1" d="([^"]+)"', chart).group(1)
    assert marks == f"M{right:.1f} {half - 4:.1f}v8"


@pytest.mark.parametrize(("longest", "expected"), [(60, [0, 10, 20, 30, 40, 50, 60]), (7.5, [0, 1, 2, 3, 4, 5, 6, 7])])
def test_ticks_are_round_and_within_the_follow_up(longest: float, expected: list[float]) -> None:
    assert time_ticks(longest) == expected
    for value in (0.013, 0.9, 17.3, 365, 4012.7):
        ticks = time_ticks(value)
        assert 3 < len(ticks) <= 9
        assert ticks[-1] <= value


def test_patients_at_risk_are_those_not_yet_gone() -> None:
    curve = {"time": [0, 3, 5, 9], "at_risk": [5, 5, 3, 1]}
    assert [at_risk(curve, time) for time in (0, 3, 4, 5, 8, 9, 10)] == [5, 5, 3, 3, 1, 1, 0]


def test_what_is_no_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"absent.json': cannot be read"):
        write_survival_report(tmp_path / "absent.json", tmp_path / "a.html")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(CohortError, match="not valid JSON"):
        write_survival_report(tmp_path / "b.json", tmp_path / "a.html")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(CohortError, match="no survival report"):
        write_survival_report(tmp_path / "c.json", tmp_path / "a.html")
