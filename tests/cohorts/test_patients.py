"""Patients with several slides: the label they share, and the data list of bags of patients."""

import math

import pytest

from monai_mil.cohorts import check_patients, read_cohort
from monai_mil.errors import CohortError, SettingsError

TABLE = """slide_id,patient_id,split,label
a,p/1,train,normal
b,p2,train,tumor
c,p/1,train,
d,p2,train,tumor
e,p3,test,normal
f,p3,test,tumor
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "cohort.csv").write_text(TABLE)
    return tmp_path / "cohort.csv"


def test_a_patient_is_one_item_of_all_its_slides(table):
    cohort = read_cohort(table, unlabelled=True, bag_of="patient")
    first, second = cohort.datalist("train", "bags", check=False)
    assert first == {
        "image": [
            {"image": "bags/a.h5", "label": 0, "slide_id": "a", "patient_id": "p/1"},
            {"image": "bags/c.h5", "label": -1, "slide_id": "c", "patient_id": "p/1"},
        ],
        "label": 0,
        "patient_id": "p/1",
    }
    assert [slide["slide_id"] for slide in second["image"]] == ["b", "d"]
    assert second["label"] == 1
    assert cohort.digest("train") == read_cohort(table, unlabelled=True).digest("train")


def test_contradicting_slides_are_named_with_their_patient(table):
    message = "patient 'p3' has slides of different labels \\(e normal, f tumor\\)"
    cohort = read_cohort(table, unlabelled=True, bag_of="patient")
    with pytest.raises(CohortError, match=message):
        cohort.datalist("test", "bags", check=False)
    check_patients(cohort, "train", "patient", None)
    check_patients(cohort, None, "slide", None)
    for settings in (("patient", None), ("slide", "mean")):
        with pytest.raises(CohortError, match=message):
            check_patients(cohort, None, *settings)


@pytest.mark.parametrize(
    ("bag_of", "level", "said"), [("patient", None, "bag_of patient"), ("slide", "max", "level max")]
)
def test_a_folder_does_not_know_patients(bag_of, level, said):
    check_patients(None, None, "slide", None)
    with pytest.raises(CohortError, match=f"{said}: a folder does not say whose"):
        check_patients(None, None, bag_of, level)


def test_several_labels_are_shared_one_by_one(tmp_path):
    (tmp_path / "c.csv").write_text("slide_id,patient_id,er,her2\na,p,1,\nb,p,,0\nc,q,1,\nd,q,0,1\n")
    cohort = read_cohort(tmp_path / "c.csv", labels=("er", "her2"), bag_of="patient")
    with pytest.raises(CohortError, match="patient 'q' has slides of different labels"):
        cohort.datalist(None, "bags", check=False)
    (tmp_path / "c.csv").write_text("slide_id,patient_id,er,her2\na,p,1,\nb,p,,0\nc,q,1,\nd,q,,\n")
    cohort = read_cohort(tmp_path / "c.csv", labels=("er", "her2"), unlabelled=True, bag_of="patient")
    first, second = (item["label"] for item in cohort.datalist(None, "bags", check=False))
    assert first == [1, 0]
    assert second[0] == 1
    assert math.isnan(second[1])


def test_scans_whose_slices_have_an_order_are_refused_where_a_patient_has_several(tmp_path):
    (tmp_path / "c.csv").write_text("scan_id,patient_id,split,label\na,p,train,x\nb,q,test,x\nc,q,test,x\n")
    cohort = read_cohort(tmp_path / "c.csv", bag_of="patient", ordered=True)
    (item,) = cohort.datalist("train", "bags", check=False)
    assert (item["patient_id"], [scan["scan_id"] for scan in item["image"]]) == ("p", ["a"])
    with pytest.raises(
        CohortError, match=r"patient 'q' has 2 scans \(b, c\), and this network takes the slices of one"
    ):
        cohort.datalist("test", "bags", check=False)
    with pytest.raises(SettingsError, match="bag_of 'case': give slide"):
        read_cohort(tmp_path / "c.csv", bag_of="case")
