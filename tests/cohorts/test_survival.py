"""Cohorts with follow-up: read, checked, split, and a synthetic one with a planted risk."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.cohorts import follow_up, read_survival_cohort, split_survival_cohort
from monai_mil.errors import CohortError
from monai_mil.metrics import concordance_index
from monai_mil.synthetic import make_survival_cohort


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_label_is_time_and_event(tmp_path: Path) -> None:
    table = write(tmp_path / "c.csv", "slide_id,split,time,event\na,train,12.5,1\nb,train,30,0\nc,test,7,1.0\n")
    cohort = read_survival_cohort(table)
    assert [slide.label for slide in cohort.slides] == [(12.5, 1.0), (30.0, 0.0), (7.0, 1.0)]
    assert follow_up(cohort, "train").tolist() == [[12.5, 1], [30, 0]]
    items = cohort.datalist("train", tmp_path, check=False)
    assert items[0]["label"] == [12.5, 1.0]
    batch = collate_bags([{"image": torch.zeros(2, 3), **item} for item in ({"label": i["label"]} for i in items)])
    assert batch["label"].tolist() == [[12.5, 1], [30, 0]]


def test_columns_may_have_other_names_and_lists_may_be_json(tmp_path: Path) -> None:
    items = [{"image": "a.svs", "months": 12, "dead": 1}, {"image": "b.svs", "months": 3.5, "dead": 0}]
    path = write(tmp_path / "c.json", json.dumps({"training": items}))
    cohort = read_survival_cohort(path, time="months", event="dead")
    assert [slide.label for slide in cohort.slides] == [(12.0, 1.0), (3.5, 0.0)]
    assert cohort.labels == ("months", "dead")


def test_slides_of_a_patient_are_one_follow_up(tmp_path: Path) -> None:
    rows = "slide_id,patient_id,time,event\na,p,12,1\nb,p,12,1\nc,q,5,0\n"
    assert follow_up(read_survival_cohort(write(tmp_path / "c.csv", rows))).tolist() == [[12, 1], [5, 0]]
    table = write(tmp_path / "d.csv", rows.replace("b,p,12,1", "b,p,13,1"))
    with pytest.raises(CohortError, match="row 3, column 'time': patient 'p' has another follow-up"):
        read_survival_cohort(table)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("a,,1", "row 2, column 'time': no time"),
        ("a,-3,1", "row 2, column 'time': '-3' is no positive number"),
        ("a,nan,1", "row 2, column 'time': 'nan' is no positive number"),
        ("a,3,yes", "row 2, column 'event': 'yes' is neither 1"),
        ("a,3,", "row 2, column 'event': no event"),
    ],
)
def test_what_is_no_follow_up_is_named_by_row_and_column(tmp_path: Path, row: str, what: str) -> None:
    with pytest.raises(CohortError, match=what):
        read_survival_cohort(write(tmp_path / "c.csv", f"slide_id,time,event\n{row}\nb,4,1\n"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    table = write(tmp_path / "c.csv", "slide_id,time\na,3\n")
    with pytest.raises(CohortError, match="column 'event': no such column"):
        read_survival_cohort(table)


def test_inference_takes_patients_without_follow_up(tmp_path: Path) -> None:
    cohort = read_survival_cohort(write(tmp_path / "c.csv", "slide_id,time,event\na,,\nb,4,1\n"), unlabelled=True)
    assert all(math.isnan(value) for value in cohort.slides[0].label)
    assert follow_up(cohort).tolist() == [[4, 1]]
    bare = read_survival_cohort(write(tmp_path / "d.csv", "slide_id\na\n"), unlabelled=True)
    assert follow_up(bare).shape == (0, 2)


def test_follow_up_that_pandas_left_out_is_unknown(tmp_path: Path) -> None:
    table = write(tmp_path / "c.csv", "slide_id,time,event\na,nan,nan\nb,4,1\nc,,NaN\n")
    cohort = read_survival_cohort(table, unlabelled=True)
    assert np.isnan([slide.label for slide in cohort.slides]).tolist() == [[True] * 2, [False] * 2, [True] * 2]
    items = [{"image": "a.svs", "time": math.nan, "event": None}, {"image": "b.svs", "time": 4, "event": 1}]
    path = write(tmp_path / "c.json", json.dumps({"testing": items}))
    assert follow_up(read_survival_cohort(path, unlabelled=True)).tolist() == [[4, 1]]


def test_a_patient_s_follow_up_is_that_of_all_its_slides(tmp_path: Path) -> None:
    rows = "slide_id,patient_id,time,event\na,p,,\nb,p,12,1\nc,p,,\nd,q,,\n"
    table = write(tmp_path / "c.csv", rows)
    cohort = read_survival_cohort(table, unlabelled=True)
    assert [slide.label for slide in cohort.slides[:3]] == [(12.0, 1.0)] * 3
    assert all(math.isnan(value) for value in cohort.slides[3].label)
    with pytest.raises(CohortError, match="row 2, column 'time': no time"):
        read_survival_cohort(table)
    write(table, rows.replace("c,p,,", "c,p,12,0"))
    with pytest.raises(CohortError, match="row 4, column 'time': patient 'p' has another follow-up"):
        read_survival_cohort(table, unlabelled=True)


def test_a_split_keeps_patients_whole_and_events_in_proportion(tmp_path: Path) -> None:
    rows = [f"s{i},p{i // 2},{5 + i // 2},{int(i // 2 % 3 == 0)}" for i in range(120)]
    table = write(tmp_path / "c.csv", "slide_id,patient_id,time,event\n" + "\n".join(rows) + "\n")
    cohort = split_survival_cohort(read_survival_cohort(table), seed=1)
    home = {}
    for slide in cohort.slides:
        assert home.setdefault(slide.patient_id, slide.split) == slide.split
    shares = {split: follow_up(cohort, split)[:, 1].mean() for split in ("train", "val", "test")}
    assert Counter(home.values())["train"] == pytest.approx(36, abs=3)
    assert all(share == pytest.approx(1 / 3, abs=0.1) for share in shares.values())


def test_the_synthetic_cohort_s_planted_risk_tells_who_dies_first(tmp_path: Path) -> None:
    table = make_survival_cohort(tmp_path, num_bags=120, width=8, bag_size=(5, 9), seed=3)
    cohort = read_survival_cohort(table)
    with table.open(newline="") as file:
        severity = np.array([float(row["severity"]) for row in csv.DictReader(file)])
    time, event = np.array([slide.label for slide in cohort.slides]).T
    assert concordance_index(severity, time, event) > 0.85
    assert 1 - event.mean() == pytest.approx(0.35, abs=0.05)
    assert {slide.split for slide in cohort.slides} == {"train", "val", "test"}
    bag = LoadBagd("image")(cohort.datalist("test", tmp_path / "bags")[0])
    assert 0 < bag["instance_labels"].sum() < len(bag["instance_labels"])


def test_the_same_seed_gives_the_same_cohort_and_no_hazard_no_risk(tmp_path: Path) -> None:
    options = {"width": 4, "bag_size": (2, 3)}
    first, second = (make_survival_cohort(tmp_path / name, num_bags=15, **options) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with make_survival_cohort(tmp_path / "c", num_bags=150, **options, log_hazard=0).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [[float(row[name]) for row in rows] for name in ("severity", "time", "event")]
    assert concordance_index(*columns) == pytest.approx(0.5, abs=0.08)
