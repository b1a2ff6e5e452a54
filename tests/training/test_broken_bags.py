"""Broken bags are found before a run begins, told, and left out of the cohort."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
from ignite.engine import Engine

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import Cohort, read_cohort, read_survival_cohort
from monai_mil.errors import CohortError
from monai_mil.training import BrokenBags

SPLITS = {"train": 8, "val": 4, "test": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bags ``train-0`` to ``test-3``, of classes 0 and 1 in turn, and their table."""
    names = [f"{split}-{index}" for split, count in SPLITS.items() for index in range(count)]
    rows = [f"{name},{name[:-2]},{'ab'[int(name[-1]) % 2]},{1 + int(name[-1])},{int(name[-1]) % 2}" for name in names]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide_id,split,label,time,event", *rows]))
    for name in names:
        write(tmp_path, name)
    return tmp_path


def write(folder: Path, name: str, instances: int = 3) -> Path:
    path = folder / "bags" / f"{name}.h5"
    BagFile.write(path, np.ones((instances, 4), np.float16), np.zeros((instances, 2), int), BagInfo(name))
    return path


def without_instances(path: Path) -> None:
    write(path.parents[1], path.stem, instances=0)


def not_finite(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["feature_checksums"]  # as other programs write it
        file["features"][1, 2] = np.inf


WAYS = {
    "missing": (Path.unlink, "no such file", "unusable bag"),
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:900]), "truncated", "unusable bag"),
    "empty": (without_instances, "no instances", "no tissue"),
    "not finite": (not_finite, "the features of instance 1 are NaN or infinite", "unusable bag"),
}


def broken_bags(folder: Path, skip: bool = True, **options: object) -> BrokenBags:
    return BrokenBags(skip, folder / "bags", folder / "eval", **options)  # type: ignore[arg-type]


def read(folder: Path, broken: BrokenBags) -> Cohort:
    return read_cohort(folder / "cohort.csv", leave_out=broken)


def breaks(folder: Path, way: str, *names: str) -> None:
    for name in names:
        WAYS[way][0](folder / "bags" / f"{name}.h5")  # type: ignore[operator]


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_bag_is_left_out_told_once_and_counted_at_the_end(
    folder: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    breaks(folder, way, "train-2", "val-1", "test-0")
    with caplog.at_level(logging.INFO):
        broken = broken_bags(folder)
        cohort = read(folder, broken)
        told = [record.message for record in caplog.records if record.message.startswith("left out: ")]
        engine = Engine(lambda engine, batch: None)
        broken.attach(engine)
        engine.run([0])
    names = [slide.slide_id for slide in cohort.slides]
    assert len(names) == 14
    assert not {"train-2", "val-1"} & set(names)
    assert "test-0" in names, "a split that the run does not take is not read"
    assert len(told) == 2
    assert all(WAYS[way][1] in line for line in told)
    counted = f"12 bags: 10 taken, 2 left out (see '{folder / 'eval' / 'failed.csv'}')"
    assert [record.message for record in caplog.records][-2] == counted, "before the engine's own last word"
    with (folder / "eval" / "failed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide_id"], row["status"]) for row in rows] == [(name, WAYS[way][2]) for name in ("train-2", "val-1")]
    assert all(WAYS[way][1] in row["message"] for row in rows)


def test_without_the_key_nothing_is_left_out_or_written(folder: Path) -> None:
    breaks(folder, "not finite", "train-2")
    assert len(read(folder, broken_bags(folder, skip=False))) == 16
    assert not (folder / "eval").exists()


def test_the_table_of_an_earlier_run_goes_where_no_bag_is_broken_any_more(folder: Path) -> None:
    breaks(folder, "empty", "train-2")
    read(folder, broken_bags(folder))
    assert (folder / "eval" / "failed.csv").exists()
    write(folder, "train-2")
    assert len(read(folder, broken_bags(folder))) == 16
    assert not (folder / "eval" / "failed.csv").exists()


def test_more_than_half_of_a_split_stops(folder: Path) -> None:
    breaks(folder, "damaged", "val-0", "val-1")
    assert len(read(folder, broken_bags(folder))) == 14
    breaks(folder, "damaged", "val-2")
    with pytest.raises(CohortError, match=r"split 'val': 3 of 4 bags are broken, more than half"):
        read(folder, broken_bags(folder))
    assert len(read(folder, broken_bags(folder, splits=["test"]))) == 16
    with pytest.raises(CohortError, match=r"split 'val': 3 of 4"):
        read(folder, broken_bags(folder, splits=["val"]))


def test_a_class_without_a_bag_stops(folder: Path) -> None:
    breaks(folder, "damaged", "val-1", "val-3")
    with pytest.raises(CohortError, match=r"split 'val': no bag of class 'b' is left without the 2 broken ones"):
        read(folder, broken_bags(folder))


def test_of_times_and_events_an_event_has_to_be_left(folder: Path) -> None:
    breaks(folder, "damaged", "val-0")
    path = folder / "cohort.csv"
    assert len(read_survival_cohort(path, leave_out=broken_bags(folder))) == 15, "no time is a class"
    breaks(folder, "damaged", "val-1", "val-3")
    write(folder, "val-0")
    with pytest.raises(CohortError, match="no bag of class 'event' is left"):
        read_survival_cohort(path, leave_out=broken_bags(folder))


def test_a_bag_of_another_width_is_a_mistake_in_the_settings(folder: Path) -> None:
    BagFile.write(folder / "bags" / "train-2.h5", np.ones((3, 5)), np.zeros((3, 2), int), BagInfo("train-2"))
    assert len(read(folder, broken_bags(folder))) == 16


def test_a_quadtree_is_broken_with_any_of_its_levels(folder: Path) -> None:
    for level in (0, 1):
        (folder / "bags" / f"level_{level}").mkdir()
        for path in (folder / "bags").glob("*.h5"):
            (folder / "bags" / f"level_{level}" / path.name).write_bytes(path.read_bytes())
    not_finite(folder / "bags" / "level_0" / "train-3.h5")
    broken = BrokenBags(True, folder / "bags" / "level_1", folder / "eval", levels=2)
    assert broken(read_cohort(folder / "cohort.csv")) == {"train-3"}


def test_of_a_patient_s_bag_each_slide_is_read(folder: Path) -> None:
    breaks(folder, "not finite", "train-1")

    class Patients:
        source, id_column, classes = folder / "cohort.csv", "slide_id", ("a", "b")

        def datalist(self, split: str, *_: object, **__: object) -> list[dict[str, object]]:
            own = read_cohort(self.source).datalist(split, folder / "bags")
            return [{"image": own, "label": 0, "patient_id": "P"}]

    assert broken_bags(folder)(Patients()) == {"train-1"}
