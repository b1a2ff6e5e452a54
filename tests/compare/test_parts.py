"""What a comparison is made of, without a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ignite.engine import Engine

from monai_mil.compare import Job, compare, make_plan, read_competitors, trained_models
from monai_mil.compare.measure import _OF_VALIDATION
from monai_mil.compare.perform import perform, reason_of
from monai_mil.compare.protocol import followed, same_for_all
from monai_mil.compare.watching import History
from monai_mil.errors import CohortError, SettingsError
from monai_mil.files import write_json
from monai_mil.runs import find_bundle, make_ensemble, shipped_bundles
from monai_mil.synthetic import make_bag_cohort


def test_methods_are_named_in_words_or_described_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "wide.json").write_text(
        json.dumps(
            {
                "bundle": "mil_baselines",
                "method": "abmil",
                "settings": {"changes::network::hidden_dim": 64},
                "grid": {"optimizer::lr": [0.1, 0.01]},
            }
        )
    )
    words = ["mil_baselines:abmil+anchor", "pathology_insight", str(tmp_path / "wide.json")]
    anchored, insight, wide = read_competitors(words, {"optimizer::weight_decay": [0, 1]})
    assert (anchored.name, anchored.overlays, anchored.stem) == (words[0], ("anchor",), "mil_baselines_abmil+anchor")
    assert (insight.bundle.name, insight.settings) == ("pathology_insight", {})
    assert wide.name == "wide"
    assert wide.points[1] == {"optimizer::weight_decay": 0, "optimizer::lr": 0.01}
    assert len(wide.points) == 4
    assert len(anchored.points) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mil_baselines:abmil", "mil_baselines:abmil"], "two methods are called"),
        (["mil_baselines:abmil+nothing"], r"has no configs/nothing\.json"),
        (["absent"], "no bundle 'absent'"),
        (["absent.json"], "method 'absent.json'"),
    ],
)
def test_methods_that_are_none_are_told(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_competitors(words)


def test_all_bundles_get_one_budget_and_one_rule_of_selection() -> None:
    baseline, insight, asmil = read_competitors(["mil_baselines:abmil", "pathology_insight", "pathology_asmil"])
    assert same_for_all(baseline, 7, survival=False) == {"train::trainer::max_epochs": 7, "early_stop::patience": 7}
    for one in (insight, asmil):
        settings = same_for_all(one, 7, survival=False)
        assert list(settings["validate::key_metric"]) == ["val_auroc"]
        assert settings["best_model::mode"] == "max"
    assert same_for_all(insight, 7, survival=False)["early_stop::mode"] == "max"
    (oracle,) = read_competitors(["ct_normal_guidance+slice_supervised"])  # judges by slices, and may follow the paper
    assert list(same_for_all(oracle, 7, survival=False)["validate::key_metric"]) == ["val_auroc"]
    assert same_for_all(oracle, 7, survival=False)["strict_paper_selection"] is False
    assert list(followed(baseline, survival=False)) == ["validate::inferer", "validate::postprocessing::transforms"]
    assert followed(asmil, survival=False) == followed(baseline, survival=True) == {}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return make_bag_cohort(tmp_path / "cohort", num_bags=12, width=4, bag_size=(2, 3)).parent


def test_folds_are_kept_and_those_of_other_cases_refused(cohort: Path, tmp_path: Path) -> None:
    methods = read_competitors(["mil_baselines:abmil", "pathology_asmil"])
    plan = make_plan(cohort, methods, tmp_path / "out", folds=4, seeds=2)
    again = make_plan(cohort, methods, tmp_path / "out", folds=4, seeds=2)
    assert plan.cohort.slides == again.cohort.slides
    assert [job.digest for job in plan.jobs] == [job.digest for job in again.jobs]
    assert len(plan.jobs) == 2 * 4 * 2
    assert [job.fold for job in plan.jobs[:8]] == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(CohortError, match="4 folds, not 3"):
        make_plan(cohort, methods, tmp_path / "out", folds=3)
    table = cohort / "cohort.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(CohortError, match="other cases"):
        make_plan(cohort, methods, tmp_path / "out", folds=4)
    with pytest.raises(SettingsError, match="no method is called 'abmil'"):
        make_plan(cohort, methods, tmp_path / "other", folds=3, reference="abmil")


def test_a_table_with_folds_keeps_them(cohort: Path, tmp_path: Path) -> None:
    methods = read_competitors(["mil_baselines:abmil"])
    first = make_plan(cohort, methods, tmp_path / "first", folds=3)
    (cohort / "cohort.csv").write_bytes((tmp_path / "first" / "cohort.csv").read_bytes())
    second = make_plan(cohort, methods, tmp_path / "second", folds=6)
    assert [slide.fold for slide in second.cohort.slides] == [slide.fold for slide in first.cohort.slides]


def test_the_line_of_a_run_repeats_it_from_within_the_folder(cohort: Path, tmp_path: Path) -> None:
    methods = read_competitors(["mil_baselines:abmil"])
    job = make_plan(cohort, methods, tmp_path / "out", folds=3, seeds=2, epochs=9).jobs[-1]
    line = job.training().line
    for words in ("--method abmil", "--fold 2", "--seed 1", "--train::trainer::max_epochs 9", f"{job.folder}/models"):
        assert words in line
    assert reason_of(CohortError(f"bag '{job.out}/bags/S.h5' is damaged"), job) == "bag 'bags/S.h5' is damaged"


def test_the_point_of_a_grid_is_chosen_on_validation(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = read_competitors(["mil_baselines:abmil"], {"optimizer::lr": [0.1, 0.2, 0.3]})
    job = make_plan(cohort, methods, tmp_path / "out", folds=3, seeds=1).jobs[0]
    scores = {0: 0.6, 1: 0.9, 2: None}
    monkeypatch.setattr("monai_mil.compare.perform._trained", lambda job, point: {"score": scores[point]})
    monkeypatch.setattr("monai_mil.compare.perform._evaluated", lambda job, point: {"evaluated": point})
    perform(job)
    done = job.finished()
    assert done is not None
    assert (done["point"], done["evaluated"]) == (1, 1)
    assert job.training(1).settings["optimizer::lr"] == 0.2
    assert job.point_folder(1).name == "point_1"


def test_a_resumed_training_repeats_the_epoch_that_it_was_killed_in(tmp_path: Path) -> None:
    def follow(epochs: list[int], loss: float) -> None:
        trainer, evaluator = Engine(lambda engine, batch: [{"loss": loss}]), Engine(lambda engine, batch: None)
        History(tmp_path / "history.json").attach(trainer, evaluator)
        for epoch in epochs:
            trainer.run([0, 1])
            evaluator.state.epoch = epoch - 1
            evaluator.run([0], max_epochs=epoch)

    follow([1, 2, 3], loss=2.0)
    follow([3, 4], loss=1.0)
    rows = json.loads((tmp_path / "history.json").read_text())
    assert [(row["epoch"], row["loss"]) for row in rows] == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]


def test_runs_are_spread_over_the_workers_of_a_dask_cluster(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    def fail(job: Job) -> None:
        write_json({"reason": f"tried {job.words}"}, job.failure)

    monkeypatch.setattr("monai_mil.compare.dask.perform", fail)
    plan = make_plan(cohort, read_competitors(["mil_baselines:abmil"]), tmp_path / "out", folds=3, seeds=1)
    with Client(processes=False, dashboard_address=None, n_workers=1, threads_per_worker=1) as client:
        rows = compare(plan, scheduler=client.scheduler.address, resamples=10)
    assert [(row.runs, row.asked) for row in rows] == [(0, 3)]
    assert rows[0].reason.startswith("tried mil_baselines:abmil, fold 0, seed 0")
    with pytest.raises(SettingsError, match="no Dask scheduler"):
        compare(plan, scheduler="nowhere", resamples=10)


def test_every_bundle_validates_on_a_split_whose_test_cases_a_curve_can_take() -> None:
    for bundle in shipped_bundles():
        config = json.loads(bundle.config("train").read_text())
        assert _OF_VALIDATION.fullmatch(config["validate"]["dataset"]["data"]), bundle.name


def test_an_ensemble_needs_finished_runs_of_one_method(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is none"):
        trained_models(tmp_path)
    for name in ("one", "other"):
        said = {
            "method": name,
            "bundle": str(find_bundle("mil_baselines").root),
            "folder": f"runs/{name}/fold_0_seed_0",
        }
        write_json(said, tmp_path / "runs" / name / "fold_0_seed_0" / "result.json")
    with pytest.raises(SettingsError, match="name one with --method: one, other"):
        trained_models(tmp_path)
    bundle, models = trained_models(tmp_path, "other")
    assert models == [tmp_path / "runs" / "other" / "fold_0_seed_0"]
    with pytest.raises(SettingsError, match=r"no model\.pt"):
        make_ensemble(bundle, models, tmp_path / "ensemble")
