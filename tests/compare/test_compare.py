"""A small comparison from its command to its table, killed in the middle and gone on with."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_mil.cohorts import read_cohort
from monai_mil.compare import trained_models
from monai_mil.metrics import auroc
from monai_mil.runs import Bundle, BundleRun, make_ensemble, predict_run
from monai_mil.synthetic import make_bag_cohort
from tests.processes import run, start

pytestmark = pytest.mark.usefixtures("fork_server")
METHODS = "mil_baselines:abmil,mil_baselines:mean_pooling,mil_baselines:nonesuch"
MEASURED = 2
"""Columns of time and memory, the last ones."""


def command(cohort: Path, out: Path) -> list[str]:
    options = {"--methods": METHODS, "--out": out, "--folds": 3, "--seeds": 1, "--epochs": 2, "--workers": 2}
    words = [word for pair in options.items() for word in pair]
    return ["-m", "monai_mil.cli", "compare", cohort, *words]


def rows(out: Path) -> list[list[str]]:
    with (out / "table.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Cohort, folder and what the command said."""
    folder = tmp_path_factory.mktemp("compared")
    make_bag_cohort(folder / "cohort", num_bags=12, width=8, bag_size=(4, 8), planted=0.3)
    done = run(*command(folder / "cohort", folder / "out"), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "cohort", folder / "out", done.stdout


def test_every_patient_is_tested_once_and_the_cohorts_own_table_stays(compared: tuple[Path, Path, str]) -> None:
    cohort, out, _ = compared
    kept = read_cohort(out / "cohort.csv")
    assert Counter(slide.fold for slide in kept.slides) == {0: 4, 1: 4, 2: 4}
    assert "fold" not in (cohort / "cohort.csv").read_text().splitlines()[0]
    tested = []
    for fold in range(3):
        path = out / "runs" / "mil_baselines_abmil" / f"fold_{fold}_seed_0" / "eval" / "predictions.csv"
        with path.open(newline="") as file:
            names = [row["slide_id"] for row in csv.DictReader(file)]
        assert names == [slide.slide_id for slide in kept.slides if slide.fold == fold]
        tested += names
    assert sorted(tested) == sorted(slide.slide_id for slide in kept.slides)


def test_the_table_says_what_the_predictions_say(compared: tuple[Path, Path, str]) -> None:
    _, out, shown = compared
    header, *methods = rows(out)
    assert [row[0] for row in methods] == METHODS.split(",")
    assert [row[1] for row in methods] == ["3 of 3", "3 of 3", "0 of 3"]
    values = []
    for fold in range(3):
        with (out / "runs" / "mil_baselines_abmil" / f"fold_{fold}_seed_0" / "eval" / "predictions.csv").open() as file:
            said = list(csv.DictReader(file))
        values.append(auroc([float(row["prob_tumor"]) for row in said], [row["label"] == "tumor" for row in said]))
    first = dict(zip(header, methods[0], strict=True))
    assert float(first["auroc"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert first["auroc_p"] == ""
    assert dict(zip(header, methods[1], strict=True))["auroc_p_holm"] != ""
    assert "no method 'nonesuch'" in dict(zip(header, methods[2], strict=True))["reason"]
    assert str(out) not in (out / "table.csv").read_text()
    assert header[-MEASURED:] == ["seconds", "memory_mib"]
    assert "mil_baselines:abmil (reference)" in shown
    page = (out / "comparison.html").read_text()
    assert all(section in page for section in ("Learning curves", "Stability of attention", "Over folds", "--fold 0"))
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_row_s_command_repeats_its_run_as_it_is_typed(compared: tuple[Path, Path, str]) -> None:
    _, out, _ = compared
    header, first, *_ = rows(out)
    for line in dict(zip(header, first, strict=True))["command"].split(" && "):
        python, *words = shlex.split(line)
        done = run(*words, folder=out)
        assert (python, done.returncode) == ("python", 0), done.stderr
    name = "mil_baselines_abmil/fold_0_seed_0/eval/predictions.csv"
    assert (out / "repeated" / name).read_bytes() == (out / "runs" / name).read_bytes()


def test_killed_in_the_middle_it_ends_with_the_same_table_and_repeats_no_run(
    compared: tuple[Path, Path, str], tmp_path: Path
) -> None:
    cohort, whole, _ = compared
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    abmil = out / "runs" / "mil_baselines_abmil"
    for fold in (0, 1):
        shutil.rmtree(abmil / f"fold_{fold}_seed_0")
    for name in ("table.csv", "table.md", "comparison.html"):
        (out / name).unlink()
    begun = start(*command(cohort, out), folder=tmp_path)
    deadline = time.monotonic() + 300
    while not list(abmil.glob("fold_[01]_seed_0/history.json")) and begun.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait(60)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/result.json")}
    assert 4 <= len(finished) < 6
    done = run(*command(cohort, out), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert [row[:-MEASURED] for row in rows(out)] == [row[:-MEASURED] for row in rows(whole)]
    for fold in (0, 1):
        name = f"mil_baselines_abmil/fold_{fold}_seed_0"
        one, other = (torch.load(each / "runs" / name / "models" / "model.pt") for each in (out, whole))
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert json.loads((out / "runs" / name / "history.json").read_text())[-1]["epoch"] == 2


def test_other_settings_do_not_mix_with_it(compared: tuple[Path, Path, str]) -> None:
    cohort, out, _ = compared
    words = [3 if word == 2 else word for word in command(cohort, out)]
    done = run(*words, folder=cohort)
    assert done.returncode == 1
    assert "was run with other settings" in done.stderr


def test_an_ensemble_is_a_bundle_that_answers_as_the_mean_of_its_members(
    compared: tuple[Path, Path, str], tmp_path: Path
) -> None:
    cohort, out, _ = compared
    bundle, models = trained_models(out, "mil_baselines:abmil")
    ensemble = Bundle(make_ensemble(bundle, models, tmp_path))
    predict_run(ensemble, [cohort / "cohort.csv"], tmp_path / "all", heatmaps=[]).start()
    settings = {"dataset_dir": str(cohort), "cohort_file": str(cohort / "cohort.csv")}
    for number, model in enumerate(models):
        own = {**settings, "ckpt_path": str(model / "models" / "model.pt"), "fold": None}
        own["output_dir"] = str(tmp_path / str(number))
        BundleRun(bundle, ("inference",), own | {"cohort_file": str(out / "cohort.csv"), "fold": number}).start()

    def probabilities(folder: Path) -> dict[str, float]:
        with (folder / "predictions.csv").open(newline="") as file:
            return {row["slide_id"]: float(row["prob_tumor"]) for row in csv.DictReader(file)}

    members = [probabilities(tmp_path / str(number)) for number in range(len(models))]
    together = probabilities(tmp_path / "all")
    assert len(together) == 12
    for name, prob in together.items():
        assert prob == pytest.approx(np.mean([member[name] for member in members]), abs=2e-6)
