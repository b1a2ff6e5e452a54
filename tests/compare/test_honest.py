"""What would make the table of a comparison lie, each refused or told."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monai_mil.bags import BagFile
from monai_mil.compare import MethodResults, Plan, RunResult, make_plan, make_rows, read_competitors
from monai_mil.compare.page import _axes
from monai_mil.compare.perform import perform
from monai_mil.compare.protocol import kept_in_memory
from monai_mil.compare.results import refuse_no_numbers
from monai_mil.compare.shown import csv_text, markdown_text
from monai_mil.errors import SettingsError
from monai_mil.files import write_json
from monai_mil.synthetic import make_bag_cohort

FIRST, SECOND = "mil_baselines:abmil", "mil_baselines:dsmil"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cohort"
    return make_bag_cohort(folder, num_bags=24, width=4, bag_size=(2, 3)).parent


@pytest.fixture(scope="module")
def plan(cohort: Path) -> Plan:
    return make_plan(cohort, read_competitors([FIRST, SECOND]), cohort.parent / "out", folds=3, seeds=2)


def answered(plan: Plan, name: str, scale: float, features: str = "texture, 4 channels") -> MethodResults:
    """A method whose answers are the labels and noise, the same noise for every method."""
    jobs = {(job.fold, job.seed): job for job in plan.jobs if job.competitor.name == name}
    runs = {}
    for fold, seed in jobs:
        cases = sorted((slide.slide_id, int(slide.label or 0)) for slide in plan.cohort.slides if slide.fold == fold)
        label = np.array([each for _, each in cases])
        noise = np.random.default_rng(10 * fold + seed).normal(size=len(cases))
        positive = 1 / (1 + np.exp(-noise - scale * label))
        patient_of = {case: case for case, _ in cases}
        said = {"epoch": 1, "parameters": 1, "flops": 1, "instances": 1, "seconds": 1.0, "memory_mib": 1.0, "point": 0}
        prob, patients = np.stack([1 - positive, positive], axis=1), tuple(patient_of)
        runs[fold, seed] = RunResult(
            said, patients, prob, label, {}, patient_of, None, (), (), {}, jobs[fold, seed].folder, features
        )
    return MethodResults(name, runs, {}, len(jobs), jobs)


def test_a_method_that_failed_in_a_fold_says_so_beside_every_figure(plan: Plan) -> None:
    whole, other = answered(plan, FIRST, 2.0), answered(plan, SECOND, 1.0)
    less = {key: run for key, run in other.runs.items() if key[0] != 1}
    rows = make_rows(plan, [whole, replace(other, runs=less, failures={(1, 0): "no tokens"})], n=50)
    text = markdown_text(plan, rows)
    assert text.splitlines()[3].count(" on 2 of 3 folds, p ") == 3
    assert " on " not in text.splitlines()[2]
    assert "2 of 6 runs have no result: no tokens" in text
    cells = list(csv.DictReader(csv_text(plan, rows).splitlines()))
    assert [(row["auroc_folds"], row["auroc_cases"]) for row in cells] == [("3", "24"), ("2", "16")]
    shared = make_rows(plan, [replace(whole, runs={key: whole.runs[key] for key in less}), other], n=50)
    assert rows[1].figures["auroc"].p_value == shared[1].figures["auroc"].p_value  # of the runs that both have


def test_a_fold_of_one_class_is_left_out_and_told(plan: Plan) -> None:
    results = [answered(plan, name, 2.0) for name in (FIRST, SECOND)]
    one_class = [
        replace(each, runs={key: replace(run, label=run.label * (key[0] > 0)) for key, run in each.runs.items()})
        for each in results
    ]
    rows = make_rows(plan, one_class, n=50)
    assert rows[0].figures["auroc"].folds == 2
    assert "on 2 of 3 folds" in markdown_text(plan, rows).splitlines()[2].split("|")[3]
    others = [replace(each, runs={k: r for k, r in each.runs.items() if k[0]}) for each in results]
    assert rows[0].figures["auroc"].value.value == make_rows(plan, others, n=50)[0].figures["auroc"].value.value


def test_a_figure_of_fewer_cases_than_another_methods_says_so(plan: Plan) -> None:
    whole, other = answered(plan, FIRST, 2.0), answered(plan, SECOND, 1.0)
    less = {
        key: replace(run, prob=run.prob[1:], label=run.label[1:], patients=run.patients[1:])
        for key, run in other.runs.items()
    }
    rows = make_rows(plan, [whole, replace(other, runs=less)], n=50)
    assert " on 21 of 24 cases" in markdown_text(plan, rows).splitlines()[3]
    assert np.isnan(rows[1].figures["auroc"].p_value)  # nothing paired can be tested


def test_a_difference_whose_variance_is_zero_is_not_left_without_a_word(plan: Plan) -> None:
    perfect, constant = answered(plan, FIRST, 99.0), answered(plan, SECOND, 0.0)
    same = {key: replace(run, prob=np.full_like(run.prob, 0.5)) for key, run in constant.runs.items()}
    rows = make_rows(plan, [perfect, replace(constant, runs=same)], n=50)
    assert (rows[0].figures["auroc"].value.value, rows[1].figures["auroc"].value.value) == (1.0, 0.5)
    assert "p unknown: no variance" in markdown_text(plan, rows).splitlines()[3]


def test_seeds_of_a_fold_that_answered_for_other_cases_are_refused(plan: Plan) -> None:
    results = answered(plan, FIRST, 2.0)
    strange = replace(results.runs[0, 1], patient_of={f"{name}x": name for name in results.runs[0, 1].patient_of})
    with pytest.raises(SettingsError, match="answered for other cases"):
        make_rows(plan, [replace(results, runs={**results.runs, (0, 1): strange})], n=50)


def test_rows_do_not_depend_on_the_order_of_the_methods(plan: Plan) -> None:
    results = [answered(plan, FIRST, 2.0), answered(plan, SECOND, 0.5)]
    there, back = make_rows(plan, results, n=50), make_rows(plan, results[::-1], n=50)
    assert csv_text(plan, there).splitlines()[1:] == csv_text(plan, back).splitlines()[:0:-1]


def test_methods_that_saw_other_features_are_told(plan: Plan) -> None:
    same = [answered(plan, name, 1.0) for name in (FIRST, SECOND)]
    assert "Other features" not in markdown_text(plan, make_rows(plan, same, n=0))
    other = [same[0], answered(plan, SECOND, 1.0, "uni, 1024 channels")]
    told = f"Other features than {FIRST} (texture, 4 channels) saw: {SECOND} (uni, 1024 channels)."
    assert told in markdown_text(plan, make_rows(plan, other, n=0))


def test_answers_that_are_no_numbers_are_a_failure(tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    table.write_text("slide_id,prob_normal,prob_tumor\nS-1,0.5,0.5\nS-2,nan,nan\n")
    with pytest.raises(SettingsError, match="answer for S-2 is no finite number"):
        refuse_no_numbers(tmp_path)
    table.write_text("patient_id,risk\nP-1,0.5\nP-2,\n")
    with pytest.raises(SettingsError, match="answer for P-2"):
        refuse_no_numbers(tmp_path)
    table.write_text("slide_id,prob_normal,prob_tumor\nS-1,0.5,0.5\n")
    refuse_no_numbers(tmp_path)


def test_a_run_that_nothing_chose_is_a_failure(cohort: Path, tmp_path: Path) -> None:
    cohort = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    header, *lines = (cohort / "cohort.csv").read_text().splitlines()
    names = header.split(",")
    fold_of = {"normal": iter([1] * 6 + [0, 2] * 3), "tumor": iter([0, 2] * 6)}  # fold 1, which validates, is normal
    folds = [next(fold_of[line.split(",")[names.index("label")]]) for line in lines]
    rows = [f"{line},{fold}" for line, fold in zip(lines, folds, strict=True)]
    (cohort / "cohort.csv").write_text("\n".join([f"{header},fold", *rows]) + "\n")
    plan = make_plan(cohort, read_competitors([FIRST]), tmp_path / "out", seeds=1, epochs=1)
    perform(plan.jobs[0])
    assert plan.jobs[0].finished() is None
    assert "nothing chooses the model" in str(plan.jobs[0].failed())


def test_other_bags_or_masks_are_another_comparison(cohort: Path, tmp_path: Path) -> None:
    def digest(place: Path) -> str:
        return make_plan(place, read_competitors([FIRST]), tmp_path / "out", folds=3, seeds=1).jobs[0].digest

    first = digest(cohort)
    moved = shutil.copytree(cohort, tmp_path / "moved")
    (moved / "bags" / "other.h5").write_bytes(b"of another cohort")
    assert digest(moved) == first
    path = next(each for each in sorted((moved / "bags").iterdir()) if each.name != "other.h5")
    with BagFile(path) as bag:
        info, coords, features = bag.info, bag.coords, bag.features()
    BagFile.write(path, features, coords, replace(info, encoder_digest="f" * 16))
    assert digest(moved) != first


def test_a_run_begun_with_other_settings_is_not_gone_on_with(cohort: Path, tmp_path: Path) -> None:
    plan = make_plan(cohort, read_competitors([FIRST]), tmp_path / "out", folds=3, seeds=1)
    write_json({"digest": plan.jobs[0].digest}, plan.jobs[0].begun)
    plan.check_earlier()
    longer = make_plan(cohort, read_competitors([FIRST]), tmp_path / "out", folds=3, seeds=1, epochs=31)
    with pytest.raises(SettingsError, match="was run with other settings"):
        longer.check_earlier()


@pytest.mark.parametrize("key", ["seed", "fold", "train::trainer::max_epochs", "train#trainer#max_epochs"])
def test_no_method_has_seeds_folds_or_epochs_of_its_own(key: str, cohort: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"bundle": "mil_baselines", "method": "abmil", "settings": {key: 1}}))
    with pytest.raises(SettingsError, match="is the same for all methods"):
        make_plan(cohort, read_competitors([str(own)]), tmp_path / "out", folds=3)
    with pytest.raises(SettingsError, match="is what the comparison sets"):
        make_plan(cohort, read_competitors([FIRST]), tmp_path / "out", folds=3, settings={key: 1})


def test_small_bags_are_kept_in_memory_unless_they_are_streamed(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, streamed, own = read_competitors([FIRST, "pathology_insight", "ct_normal_guidance"])
    settings = kept_in_memory(plain, cohort / "bags")
    assert settings["train::dataset::_target_"] == settings["validate::dataset::_target_"] == "CacheDataset"
    assert kept_in_memory(streamed, cohort / "bags") == kept_in_memory(own, cohort / "bags") == {}
    monkeypatch.setattr("monai_mil.compare.protocol._SMALL", 100)
    assert kept_in_memory(plain, cohort / "bags") == {}


def test_losses_below_zero_are_not_drawn_on_a_logarithmic_axis(plan: Plan) -> None:
    results = [answered(plan, name, 1.0) for name in (FIRST, SECOND)]

    def axis(loss: float) -> tuple[str, str, bool]:
        first = results[0]
        runs = {key: replace(run, history=[{"epoch": 1, "loss": loss}]) for key, run in first.runs.items()}
        return _axes(plan, [replace(first, runs=runs), results[1]])["Training loss"]

    assert axis(0.1) == ("epoch", "mean loss, logarithmic,", True)
    assert axis(-0.1) == ("epoch", "mean loss", False)
