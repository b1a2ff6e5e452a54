"""Grids, sweeps, test curves and follow-up, each run once from the plan to the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from monai_mil.compare import Plan, Row, make_plan, make_rows, read_competitors, read_results
from monai_mil.compare.curves import epochs_text, sweep_text
from monai_mil.compare.page import write_comparison_page
from monai_mil.compare.perform import perform
from monai_mil.compare.results import RunResult
from monai_mil.metrics import auroc
from monai_mil.synthetic import make_survival_cohort, make_tree_cohort

Ran = tuple[Plan, RunResult, list[Row]]


def ran(plan: Plan) -> Ran:
    """The first job done, read and made a row of."""
    perform(plan.jobs[0])
    assert plan.jobs[0].failed() is None
    results = read_results(plan)
    write_comparison_page(plan, results, make_rows(plan, results, n=20), plan.out / "comparison.html")
    return plan, results[0].runs[0, 0], make_rows(plan, results, n=20)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """HAG-MIL with a grid of two learning rates, two numbers of opened tiles, and a test curve."""
    folder = tmp_path_factory.mktemp("searched")
    make_tree_cohort(folder / "cohort", num_bags=18, levels=2, width=6, bag_size=(2, 4), planted=0.4)
    competitors = read_competitors(["pathology_hagmil"], {"optimizer::lr": [1e-3, 1e-4]})
    options = {"test_curve": True, "sweep": ("k_eval", (1, 100)), "settings": {"levels": 2, "hidden_dims": [8, 8, 8]}}
    return ran(make_plan(folder / "cohort", competitors, folder / "out", folds=3, seeds=1, epochs=2, **options))


def test_every_point_of_a_grid_is_trained_and_the_best_on_validation_tested(searched: Ran) -> None:
    plan, run, rows = searched
    job = plan.jobs[0]
    scores = [json.loads((job.point_folder(point) / "trained.json").read_text())["score"] for point in (0, 1)]
    assert run.said["point"] == int(np.argmax(scores))
    assert [point for point in (0, 1) if (job.point_folder(point) / "eval").exists()] == [run.said["point"]]
    assert f"--optimizer::lr {[0.001, 0.0001][run.said['point']]}" in rows[0].line


def test_a_test_curve_ends_where_the_evaluation_stands_and_chooses_nothing(searched: Ran) -> None:
    plan, run, _ = searched
    curve = {row["epoch"]: row["test_auroc"] for row in run.history}
    assert list(curve) == [1, 2]
    assert curve[run.said["epoch"]] == pytest.approx(auroc(run.prob, run.label))
    rows = list(csv.DictReader(epochs_text(read_results(plan)).splitlines()))
    assert [(row["fold"], row["epoch"]) for row in rows] == [("0", "1"), ("0", "2")]
    assert float(rows[1]["test_auroc"]) == pytest.approx(curve[2], rel=1e-5)


def test_a_sweep_evaluates_the_chosen_model_with_every_value(searched: Ran) -> None:
    plan, run, rows = searched
    assert sorted(run.sweep) == ["1", "100"]
    assert np.array_equal(run.sweep["100"][0], run.prob)  # as many tiles as without a sweep: all
    assert not np.array_equal(run.sweep["1"][0], run.prob)
    page = (plan.out / "comparison.html").read_text()
    assert all(section in page for section in ("Sweep", "Test curves", "place of k_eval in 1, 100"))
    assert rows[0].figures["auroc"].folds == 1
    header, first, second = sweep_text(read_results(plan), "k_eval").splitlines()
    assert header == "method,fold,seed,k_eval,test_auroc"
    assert first.startswith("pathology_hagmil,0,0,1,")
    assert second == f"pathology_hagmil,0,0,100,{auroc(run.prob, run.label):.6g}"


def test_follow_up_is_compared_by_concordance(tmp_path: Path) -> None:
    make_survival_cohort(tmp_path / "cohort", num_bags=30, width=6, bag_size=(2, 4))
    methods = read_competitors(["mil_baselines:abmil"])
    plan = make_plan(tmp_path / "cohort", methods, tmp_path / "out", folds=3, seeds=1, epochs=1, survival=True)
    _, run, rows = ran(plan)
    assert run.label.shape == (10, 2)
    found = rows[0].figures["concordance"].value.value
    said = json.loads((plan.jobs[0].folder / "eval" / "survival.json").read_text())
    assert found == pytest.approx(said["concordance"]["value"])
    assert "concordance" in (plan.out / "comparison.html").read_text().lower()
