import csv
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from monai_mil.bags import BagFile, BagInfo, LoadBagd, ResilientDataset
from monai_mil.cohorts import read_cohort
from monai_mil.errors import CohortError, NoLungsError, OutputError
from monai_mil.synthetic import make_bag_cohort


@pytest.fixture
def items(tmp_path):
    """Four bags, of which the second is missing."""
    cohort = read_cohort(make_bag_cohort(tmp_path, num_bags=10, width=8, bag_size=(1, 9)))
    listed = cohort.datalist(bag_dir=tmp_path / "bags")[:4]
    return [item | {"image": str(tmp_path / "gone.h5")} if index == 1 else item for index, item in enumerate(listed)]


def test_an_unreadable_case_is_left_out_told_and_an_error_at_the_end(items, caplog):
    dataset = ResilientDataset(items, LoadBagd(width=8))
    for _ in range(2):  # a second pass starts its own list
        assert [item["slide_id"] for item in dataset] == [items[index]["slide_id"] for index in (0, 2, 3)]
        assert len(dataset.failures) == 1
    assert "gone.h5': no such file" in caplog.text
    with pytest.raises(CohortError, match=r"(?s)1 of 4 cases failed.*gone\.h5': no such file"):
        dataset.raise_failures()


def test_nothing_is_raised_where_nothing_failed(items):
    dataset = ResilientDataset(items[2:], LoadBagd())
    assert len(list(dataset)) == 2
    dataset.raise_failures()


def failed(folder):
    with (folder / "failed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_case_left_out_has_a_row_with_its_status(items, tmp_path):
    (tmp_path / "text.h5").write_text("no bag")
    BagFile.write(tmp_path / "empty.h5", np.empty((0, 8), np.float16), np.empty((0, 2), int), BagInfo("empty"))
    listed = [*items, *({"image": str(tmp_path / f"{name}.h5"), "slide_id": name} for name in ("text", "empty"))]
    dataset = ResilientDataset(listed, LoadBagd(width=8), tmp_path / "eval")
    assert len(list(dataset)) == 3
    rows = failed(tmp_path / "eval")
    assert [(row["slide_id"], row["status"]) for row in rows] == [
        (items[1]["slide_id"], "unusable bag"),
        ("text", "unusable bag"),
        ("empty", "no tissue"),
    ]
    assert "gone.h5': no such file" in rows[0]["message"]


def test_scans_are_named_as_scans(tmp_path):
    def no_lungs(item):
        raise NoLungsError("scan 'a': no lungs")

    list(ResilientDataset([{"image": "a", "scan_id": "a"}], no_lungs, tmp_path))
    assert failed(tmp_path) == [{"scan_id": "a", "status": "no lungs", "message": "scan 'a': no lungs"}]


def test_a_row_stands_as_soon_as_its_case_has_failed(items, tmp_path):
    passing = iter(ResilientDataset(items, LoadBagd(), tmp_path))
    next(passing), next(passing)
    assert len(failed(tmp_path)) == 1, "a run that is killed has told what it met"


def test_the_table_of_an_earlier_run_goes_where_nothing_fails_any_more(items, tmp_path):
    list(ResilientDataset(items, LoadBagd(), tmp_path))
    list(ResilientDataset(items[2:], LoadBagd(), tmp_path))
    assert not (tmp_path / "failed.csv").exists()


def test_what_a_failed_case_has_opened_is_let_go_before_the_next():
    opened = []

    def transform(name):
        assert all(reference() is None for reference in opened)
        slide = np.zeros(3)
        opened.append(weakref.ref(slide))
        if name["image"] == "bad":
            raise NoLungsError("scan 'bad': no lungs")
        return name

    listed = [{"image": name, "scan_id": name} for name in ("bad", "bad", "good")]
    assert len(list(ResilientDataset(listed, transform))) == 1
    assert len(opened) == 3


def test_a_table_that_cannot_be_written_ends_the_run(items, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"failed\.csv' cannot be written"):
        list(ResilientDataset(items, LoadBagd(), tmp_path / "file" / "eval"))


def test_a_fault_of_the_program_is_no_bad_case(items):
    def broken(item):
        raise KeyError("programming error")

    with pytest.raises(KeyError, match="programming error"):
        list(ResilientDataset(items, broken))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_read_every_case_once_and_lose_no_failure(items, workers, tmp_path):
    alone = ResilientDataset(items, LoadBagd(width=8), tmp_path / "alone")
    expected = [item["image"].tolist() for item in alone]
    shared = ResilientDataset(items, LoadBagd(width=8), tmp_path / "shared")
    options = {"batch_size": None, "num_workers": workers, "persistent_workers": True}
    loader = DataLoader(shared, **options)
    for _ in range(2):  # persistent workers begin a second pass
        found = [item["image"].tolist() for item in loader]
        assert sorted(found) == sorted(expected)
        with pytest.raises(CohortError) as raised:
            shared.raise_failures()
        assert shared.failures == alone.failures
        with pytest.raises(CohortError, match=re.escape(str(raised.value).splitlines()[0])):
            alone.raise_failures()
        tables = [(tmp_path / name / "failed.csv").read_text() for name in ("alone", "shared")]
        assert tables[0] == tables[1]
    assert [item["image"].tolist() for item in shared] == expected, "and none of them are counted twice afterwards"
    assert shared.failures == alone.failures


def test_notes_of_workers_leave_nothing_behind(items):
    dataset = ResilientDataset(items, LoadBagd(width=8))
    folder = Path(dataset._notes)
    assert folder.is_dir()
    del dataset
    assert not folder.exists()
