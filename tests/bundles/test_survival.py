"""The survival variant of the slide bundles: trained, evaluated and asked for risks, as a user does it."""

import json
from functools import partial

import pytest

from monai_mil.heatmaps import Heatmap
from monai_mil.reports import write_survival_report
from monai_mil.synthetic import make_survival_cohort
from tests.bundles.common import checkpoint, rows, run_bundle, weights
from tests.processes import run_together

WIDTH = 32
BAGS = {"encoder": "synthetic", "in_channels": WIDTH}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    return make_survival_cohort(folder, num_bags=100, width=WIDTH, bag_size=(20, 60), seed=0).parent


def train_and_evaluate(name, cohort, folder, **options):
    options = {**BAGS, "dataset_dir": cohort, "ckpt_dir": folder / "models", "output_dir": folder / "eval"} | options
    log = run_bundle(name, ["train", "survival"], cwd=folder, **options).stdout
    run_bundle(name, ["train", "survival", "evaluate", "evaluate_survival"], cwd=folder, **options)
    return log


@pytest.fixture(scope="module", params=["mil_baselines", "pathology_asmil"])
def trained(request, cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    options = {"optimizer::lr": 0.001, "train::trainer::max_epochs": 3}
    return request.param, folder, train_and_evaluate(request.param, cohort, folder, **options)


def test_a_planted_risk_is_found_on_the_test_split_and_lifelines_agrees(trained, cohort):
    from lifelines.utils import concordance_index

    _, folder, log = trained
    assert "val_concordance" in log
    report = json.loads((folder / "eval" / "survival.json").read_text())
    test = {row["patient_id"]: row for row in rows(cohort / "cohort.csv") if row["split"] == "test"}
    found = rows(folder / "eval" / "survival.csv")
    assert {row["patient_id"] for row in found} == test.keys()
    assert report["concordance"]["value"] >= 0.75
    columns = ([float(row[name]) for row in found] for name in ("time", "risk", "event"))
    time, risk, event = columns
    assert concordance_index(time, [-value for value in risk], event) == pytest.approx(report["concordance"]["value"])
    metrics = dict(line.split(",") for line in (folder / "eval" / "metrics.csv").read_text().splitlines())
    assert float(metrics["test_concordance"]) == pytest.approx(report["concordance"]["value"])
    assert report["log_rank"]["p_value"] < 0.05
    assert write_survival_report(folder / "eval" / "survival.json", folder / "report.html").stat().st_size > 10_000


def test_every_slide_has_its_risk_and_a_falling_survival_curve(trained):
    _, folder, _ = trained
    edges = json.loads((folder / "models" / "time_bins.json").read_text())["edges"]
    names = [f"survival_{edge:g}" for edge in edges[1:-1]]
    for row in rows(folder / "eval" / "predictions.csv"):
        curve = [float(row[name]) for name in names]
        assert curve == sorted(curve, reverse=True)
        assert float(row["risk"]) == pytest.approx(-sum(curve), abs=1e-4)
        assert row["event"] in ("0", "1")


def test_inference_needs_no_follow_up_and_gives_the_risks_of_the_evaluation(trained, cohort, tmp_path):
    name, folder, _ = trained
    options = {**BAGS, "dataset_dir": cohort, "output_dir": tmp_path, "ckpt_path": folder / "models" / "model.pt"}
    options |= {"heatmap_formats": "[]"}
    run_bundle(name, ["inference", "inference_heatmap", "inference_survival"], cwd=tmp_path, **options)
    found = {row["slide_id"]: row for row in rows(tmp_path / "predictions.csv")}
    assert found.keys() == {path.stem for path in (cohort / "bags").glob("*.h5")}
    for row in rows(folder / "eval" / "predictions.csv"):
        assert float(found[row["slide_id"]]["risk"]) == pytest.approx(float(row["risk"]), abs=1e-4)
        assert found[row["slide_id"]]["time"] == found[row["slide_id"]]["event"] == ""
    heatmap = Heatmap.load(tmp_path / "heatmaps" / "bag_000.h5")
    assert heatmap.attributes["prediction"] == f"risk {float(found['bag_000']['risk']):.3g}"


@pytest.fixture(scope="module")
def beside_the_anchor(cohort, tmp_path_factory):
    """CLAM with all its overlays, in the order that the docs give, by one distributed process."""
    folder = tmp_path_factory.mktemp("beside_the_anchor")
    options = {**BAGS, "dataset_dir": cohort, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    options |= {"method": "clam_mb", "train::trainer::max_epochs": 1}
    options |= {"run": partial(run_together, processes=1)}
    run_bundle("mil_baselines", ["train", "anchor", "survival", "multi_gpu_train"], cwd=folder, **options)
    evaluate = ["train", "survival", "evaluate", "evaluate_survival", "multi_gpu_evaluate"]
    run_bundle("mil_baselines", evaluate, cwd=folder, **options)
    return folder


def test_a_method_with_further_losses_learns_survival_from_its_bags_beside_the_anchor(beside_the_anchor, cohort):
    edges = json.loads((beside_the_anchor / "models" / "time_bins.json").read_text())["edges"]
    assert len(weights(beside_the_anchor)["classifier.weight"]) == len(edges) - 1
    objects = checkpoint(beside_the_anchor, 1)
    assert objects["anchor"]["steps"] == sum(row["split"] == "train" for row in rows(cohort / "cohort.csv"))
    assert objects["time_bins"]["edges"] == edges


def test_the_multi_gpu_configs_come_last(beside_the_anchor, cohort):
    tested = {row["patient_id"] for row in rows(cohort / "cohort.csv") if row["split"] == "test"}
    assert {row["patient_id"] for row in rows(beside_the_anchor / "eval" / "survival.csv")} == tested
    assert 0 < json.loads((beside_the_anchor / "eval" / "survival.json").read_text())["concordance"]["value"] <= 1
