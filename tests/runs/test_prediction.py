"""Predicting: the same results as monai.bundle's, resumed after an interruption, and nobody lost."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from monai_mil.errors import BusyError, CohortError, SettingsError
from monai_mil.runs import find_bundle, parsed_settings, predict, predict_run, show_outcome
from monai_mil.savers import HeatmapSaver
from tests.runs.conftest import write_bag
from tests.test_locks import another_run

RESULTS = ("predictions.csv", "heatmaps/S-0.geojson", "heatmaps/S-3.geojson")


def run(bags: Path, out: Path, *settings: str, heatmaps=("geojson",), **options):
    given = parsed_settings(["device=cpu", *settings])
    return predict_run(find_bundle("pathology_asmil"), [bags], out, heatmaps=heatmaps, settings=given, **options)


def names(out: Path) -> list[str]:
    with (out / "predictions.csv").open(newline="") as file:
        return [row["slide_id"] for row in csv.DictReader(file)]


def spied(monkeypatch) -> list[str]:
    """Names of the cases whose heatmaps are made from now on."""
    made: list[str] = []
    collect = HeatmapSaver._collect

    def noted(self, case):
        made.append(case.name)
        return collect(self, case)

    monkeypatch.setattr(HeatmapSaver, "_collect", noted)
    return made


def interrupted(monkeypatch, after: str) -> None:
    """Stop the next run dead, as a kill would, when a case is done."""
    from monai_mil.runs.journal import Journal

    add = Journal.add

    def stop(self, case, *args):
        add(self, case, *args)
        if case == after:
            monkeypatch.setattr(Journal, "add", add)
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stop)


def test_predict_gives_what_monai_bundle_gives_byte_by_byte(bags, tmp_path, console):
    from monai.bundle import run as monai_run

    mine = run(bags, tmp_path / "mine", heatmaps=None)
    outcome = predict(mine, console=console)
    assert (outcome.found, outcome.kept, outcome.is_whole) == (4, 0, True)
    theirs = run(bags, tmp_path / "theirs", heatmaps=None)
    monai_run(config_file=theirs.files, bundle_root=str(theirs.bundle.root), **theirs.settings)
    for result in (*RESULTS, "heatmaps/S-0.png"):
        assert (tmp_path / "mine" / result).read_bytes() == (tmp_path / "theirs" / result).read_bytes(), result
    assert outcome.report.name == "report.html"
    assert "pathology_asmil" in outcome.report.read_text()


def test_an_interrupted_run_goes_on_and_ends_the_same(bags, tmp_path, console, monkeypatch):
    predict(run(bags, tmp_path / "whole"), console=console)
    interrupted(monkeypatch, after="S-1")
    with pytest.raises(KeyboardInterrupt):
        predict(run(bags, tmp_path / "out"), console=console)
    assert not (tmp_path / "out" / "predictions.csv").exists()
    made = spied(monkeypatch)
    outcome = predict(run(bags, tmp_path / "out"), console=console)
    assert (outcome.found, outcome.kept) == (4, 2)
    assert made == ["S-2", "S-3"]
    for result in RESULTS:
        assert (tmp_path / "out" / result).read_bytes() == (tmp_path / "whole" / result).read_bytes(), result


def test_a_line_cut_by_a_kill_is_not_believed(bags, tmp_path, console, monkeypatch):
    interrupted(monkeypatch, after="S-2")
    with pytest.raises(KeyboardInterrupt):
        predict(run(bags, tmp_path / "out"), console=console)
    journal = tmp_path / "out" / "predict.jsonl"
    journal.write_bytes(journal.read_bytes()[:-60])
    made = spied(monkeypatch)
    assert predict(run(bags, tmp_path / "out"), console=console).kept == 2
    assert made == ["S-2", "S-3"]
    assert names(tmp_path / "out") == ["S-0", "S-1", "S-2", "S-3"]


def test_a_heatmap_that_cannot_be_read_is_made_anew_and_told(bags, tmp_path, monkeypatch):
    out, console = tmp_path / "out", Console(file=io.StringIO(), width=200)
    interrupted(monkeypatch, after="S-1")
    with pytest.raises(KeyboardInterrupt):
        predict(run(bags, out), console=console)
    whole = (out / "heatmaps" / "S-0.h5").read_bytes()
    (out / "heatmaps" / "S-0.h5").write_bytes(bytes(len(whole)))  # as a power cut leaves it
    made = spied(monkeypatch)
    assert predict(run(bags, out), console=console).kept == 1
    assert "heatmap 'S-0.h5' cannot be read: it is made anew" in console.file.getvalue()
    assert made == ["S-0", "S-2", "S-3"]
    assert (out / "heatmaps" / "S-0.h5").read_bytes() == whole


def test_a_prediction_whose_note_is_damaged_is_made_anew_and_told(bags, tmp_path, monkeypatch):
    out, console = tmp_path / "out", Console(file=io.StringIO(), width=200)
    predict(run(bags, tmp_path / "whole"), console=console)
    interrupted(monkeypatch, after="S-2")
    with pytest.raises(KeyboardInterrupt):
        predict(run(bags, out), console=console)
    journal = out / "predict.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"case": "S-1"' in line)
    lines[number] = re.sub(r"0\.\d\d", "0.11", lines[number], count=1)  # still JSON, and another probability
    journal.write_text("".join(lines))
    made = spied(monkeypatch)
    assert predict(run(bags, out), console=console).kept == 2
    assert "1 of its lines are not what was written; the cases in them are predicted again" in console.file.getvalue()
    assert made == ["S-1", "S-3"]
    assert (out / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


@pytest.mark.parametrize("change", ["settings", "weights", "overwrite"])
def test_what_was_done_otherwise_is_done_again(change, bags, tmp_path, console, monkeypatch):
    from monai_mil.runs import copy_bundle

    predict(run(bags, tmp_path / "out"), console=console)
    made = spied(monkeypatch)
    if change == "settings":
        predict(run(bags, tmp_path / "out", heatmaps=["geojson", "tiff"]), console=console)
    elif change == "overwrite":
        predict(run(bags, tmp_path / "out"), console=console, overwrite=True)
    else:
        import torch

        from monai_mil.model_card import weights_digest

        folder = copy_bundle(find_bundle("pathology_asmil"), tmp_path)
        weights = torch.load(folder / "models" / "model.pt", weights_only=True)
        weights[next(iter(weights))] += 1e-3
        torch.save(weights, folder / "models" / "model.pt")
        card = json.loads((folder / "models" / "model.json").read_text())
        (folder / "models" / "model.json").write_text(json.dumps(card | {"weights": weights_digest(weights)}))
        predict(run(bags, tmp_path / "out", model=folder / "models" / "model.pt"), console=console)
    assert made == ["S-0", "S-1", "S-2", "S-3"]


@pytest.mark.parametrize("bag_of", ["slide", "patient"])
def test_no_patient_is_lost_by_an_interruption(bag_of, bags, tmp_path, console, monkeypatch):
    shipped = find_bundle("pathology_asmil").weights
    card = json.loads(shipped.with_suffix(".json").read_text())
    card["settings"]["bag_of"] = bag_of
    (tmp_path / "model.json").write_text(json.dumps(card))
    shutil.copy(shipped, tmp_path / "model.pt")
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,patient_id\nS-0,p\nS-1,q\nS-2,p\nS-3,q\n")

    def predicted():
        return run(table, tmp_path / "out", "patient_level=mean", heatmaps=[], model=tmp_path / "model.pt")

    interrupted(monkeypatch, after="p" if bag_of == "patient" else "S-1")
    with pytest.raises(KeyboardInterrupt):
        predict(predicted(), console=console)
    outcome = predict(predicted(), console=console)
    assert outcome.is_whole
    assert outcome.found == (2 if bag_of == "patient" else 4)
    with (tmp_path / "out" / "patients.csv").open(newline="") as file:
        found = {row["patient_id"]: row["slide_ids"] for row in csv.DictReader(file)}
    assert found == {"p": "S-0;S-2", "q": "S-1;S-3"}


def test_new_changed_and_unmapped_cases_are_done_the_others_kept(bags, tmp_path, console, monkeypatch):
    predict(run(bags, tmp_path / "out"), console=console)
    write_bag(bags / "S-1.h5", seed=9)
    write_bag(bags / "S-9.h5", seed=10)
    (tmp_path / "out" / "heatmaps" / "S-2.h5").unlink()
    (bags / "S-3.h5").unlink()
    made = spied(monkeypatch)
    outcome = predict(run(bags, tmp_path / "out"), console=console)
    assert made == ["S-1", "S-2", "S-9"]
    assert outcome.kept == 1
    assert names(tmp_path / "out") == ["S-0", "S-1", "S-2", "S-9"]  # and nobody who is not there any more


def test_a_case_that_fails_stops_nobody_and_is_tried_again(bags, tmp_path, console, capsys):
    from rich.console import Console

    whole = (bags / "S-1.h5").read_bytes()
    (bags / "S-1.h5").write_bytes(b"broken")
    failing = run(bags, tmp_path / "out")
    outcome = predict(failing, console=console)
    assert list(outcome.failed) == ["S-1"]
    assert not outcome.is_whole
    assert names(tmp_path / "out") == ["S-0", "S-2", "S-3"]
    show_outcome(outcome, failing.bundle, Console(stderr=True, width=200))
    told = capsys.readouterr().err
    assert "1 of 4 slides left out" in told
    assert "S-1.h5" in told
    assert "failed.csv" in told
    assert told.splitlines()[-1] == "4 slides found: 3 predicted, 1 left out"
    assert "synthetic" in told
    (bags / "S-1.h5").write_bytes(whole)
    outcome = predict(run(bags, tmp_path / "out"), console=console)
    assert outcome.is_whole
    assert outcome.kept == 3
    assert not (tmp_path / "out" / "failed.csv").exists()
    assert names(tmp_path / "out") == ["S-0", "S-1", "S-2", "S-3"]


def test_an_error_amid_the_run_is_no_failure_of_the_case_that_failed_before(bags, tmp_path, console, monkeypatch):
    from monai_mil.savers import PredictionSaver

    (bags / "S-0.h5").write_bytes(b"broken")
    collect = PredictionSaver._collect

    def stop(self, case):
        if case.name == "S-2":
            raise CohortError("no answer of S-2")
        return collect(self, case)

    monkeypatch.setattr(PredictionSaver, "_collect", stop)
    with pytest.raises(CohortError, match="no answer of S-2"):
        predict(run(bags, tmp_path / "out"), console=console)
    monkeypatch.setattr(PredictionSaver, "_collect", collect)
    outcome = predict(run(bags, tmp_path / "out"), console=console)
    assert (outcome.kept, list(outcome.failed)) == (1, ["S-0"])
    assert names(tmp_path / "out") == ["S-1", "S-2", "S-3"]


def test_a_case_without_its_heatmap_is_told_and_done_again(bags, tmp_path, console, monkeypatch):
    (tmp_path / "out" / "heatmaps" / "S-1.geojson").mkdir(parents=True)  # nothing can be written in its place
    outcome = predict(run(bags, tmp_path / "out"), console=console)
    assert list(outcome.incomplete) == ["S-1"]
    assert not outcome.failed
    assert not outcome.is_whole
    (tmp_path / "out" / "heatmaps" / "S-1.geojson").rmdir()
    made = spied(monkeypatch)
    assert predict(run(bags, tmp_path / "out"), console=console).is_whole
    assert made == ["S-1"]


def test_what_concerns_every_case_is_the_user_s_error_in_its_own_words(bags, tmp_path, console):
    with pytest.raises(SettingsError, match="was trained with encoder"):
        predict(run(bags, tmp_path / "out", "encoder=uni"), console=console)
    empty = tmp_path / "empty"
    (empty / "level_0").mkdir(parents=True)
    (empty / "S-1.h5").touch()
    (empty / "S-1.h5").rename(empty / "level_0" / "S-1.h5")
    with pytest.raises(CohortError, match="no bags"):
        predict(run(empty, tmp_path / "out"), console=console)


def test_what_is_logged_and_warned_stands_in_the_run_s_log_alone(bags, tmp_path, console, capfd):
    predict(run(bags, tmp_path / "out"), console=console)
    assert "4 cases found: 4 done" in (tmp_path / "out" / "predict.log").read_text()
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == ""


class Died(BaseException):
    """Stands for the end of the process: nothing is tidied up."""


def dies_in(monkeypatch, case: str) -> None:
    """End every run, as a crash within a library would, when it reads the case."""
    from monai_mil.bags import LoadBagd

    load = LoadBagd.__call__

    def read(self, data):
        if data["slide_id"] == case:
            raise Died
        return load(self, data)

    monkeypatch.setattr(LoadBagd, "__call__", read)


def test_a_case_that_takes_the_process_down_twice_is_set_aside_until_it_is_asked_for(
    bags, tmp_path, console, monkeypatch
):
    predict(run(bags, tmp_path / "whole"), console=console)
    with monkeypatch.context() as patched:
        dies_in(patched, "S-1")
        for _ in range(2):
            with pytest.raises(Died):
                predict(run(bags, tmp_path / "out"), console=console)
        for _ in range(2):
            outcome = predict(run(bags, tmp_path / "out"), console=console)
            assert (set(outcome.failed), outcome.set_aside, outcome.is_whole) == ({"S-1"}, 1, False)
            assert "died 2 times" in outcome.failed["S-1"]
            assert names(tmp_path / "out") == ["S-0", "S-2", "S-3"]
            with (tmp_path / "out" / "failed.csv").open(newline="") as file:
                assert [(row["slide_id"], row["status"]) for row in csv.DictReader(file)] == [("S-1", "set aside")]
            told = Console(width=200)
            with told.capture() as shown:
                show_outcome(outcome, find_bundle("pathology_asmil"), told)
            assert shown.get().splitlines()[-1].endswith("1 left out (1 set aside)")
        with pytest.raises(Died):
            predict(run(bags, tmp_path / "out"), console=console, retry=True)
        assert predict(run(bags, tmp_path / "out"), console=console).set_aside == 1, "asked for again, tried once"
    assert predict(run(bags, tmp_path / "out"), console=console, retry=True).is_whole
    for result in RESULTS:
        assert (tmp_path / "out" / result).read_bytes() == (tmp_path / "whole" / result).read_bytes(), result


def test_the_second_of_two_predictions_is_told_which_is_the_first(bags, tmp_path, console):
    out, first = tmp_path / "out", os.getppid()
    with another_run(out / "predict.jsonl", first):
        with pytest.raises(BusyError, match=rf"predict.jsonl' is being written by another run \(process {first} on"):
            predict(run(bags, out), console=console)
        assert sorted(path.name for path in out.iterdir()) == [".predict.jsonl.lock", ".predict.jsonl.run"]


def test_no_case_is_blamed_for_an_interruption_or_a_full_disk(bags, tmp_path, console, monkeypatch):
    from monai_mil.errors import OutputError
    from monai_mil.savers import PredictionSaver

    for error in (KeyboardInterrupt, OutputError, KeyboardInterrupt):
        with monkeypatch.context() as patched:
            patched.setattr(PredictionSaver, "_collect", lambda *_, error=error: (_ for _ in ()).throw(error("no")))
            with pytest.raises(error):
                predict(run(bags, tmp_path / "out"), console=console)
    assert predict(run(bags, tmp_path / "out"), console=console).is_whole
