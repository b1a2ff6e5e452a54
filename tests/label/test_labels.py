"""From annotations to weak labels."""

import pytest

from monai_mil.errors import AnnotationError, CohortError
from monai_mil.label import HEAT_CLASSES, LabelRules, WeakLabel, read_label_table

RULES = LabelRules(("normal", "tumor"), {"carcinoma": "tumor"})


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["Tumor"], "tumor"),
        (["tumor", "Normal"], "tumor"),
        (["Normal", "normal"], "normal"),
        (["Negative"], "normal"),
        (["Positive"], "tumor"),
        (["Carcinoma"], "tumor"),
        (["benign"], "normal"),
        ([*HEAT_CLASSES], None),
        ([*HEAT_CLASSES, "normal"], "normal"),
        (["Ignore*", None, ""], None),
        (["stroma"], None),
    ],
)
def test_any_finding_makes_a_slide_positive_and_heat_says_nothing(names, label):
    assert RULES.from_annotations(names).name == label


def test_a_part_without_a_finding_says_nothing_of_the_rest():
    assert RULES.from_annotations(["normal"], whole=False).name is None
    assert RULES.from_annotations(["tumor"], whole=False).name == "tumor"


def test_of_several_findings_the_one_drawn_most_often_counts():
    rules = LabelRules(("normal", "LUAD", "LUSC"))
    assert rules.from_annotations(["LUSC", "LUAD", "lusc", "normal"]).name == "LUSC"


def test_the_submission_s_own_label_stands_first():
    assert RULES.from_parameters({"bag_label": 0}) == WeakLabel("normal", "bag_label")
    assert RULES.from_parameters({"bag_label": "Carcinoma"}) == WeakLabel("tumor", "bag_label")
    assert RULES.from_parameters({}) is None
    with pytest.raises(AnnotationError, match="bag_label '7' is no class: use normal, tumor"):
        RULES.from_parameters({"bag_label": 7})


def test_a_mask_labels_a_scan():
    assert RULES.from_mask(True).name == "tumor"
    assert RULES.from_mask(False).name == "normal"
    assert LabelRules(("a", "b", "c")).from_mask(True).name is None


def test_unknown_classes_are_told_and_refused_where_nothing_is_known():
    assert RULES.unknown(["stroma", "tumor", "MIL high", None]) == ["stroma"]
    RULES.check(["stroma", "tumor"])
    RULES.check(["MIL high"])
    with pytest.raises(AnnotationError, match="no class of the model among 'stroma': use normal, tumor"):
        RULES.check(["stroma", "MIL high"])


def test_a_table_gives_labels(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\nS-1,tumor\nS-2,Normal\n")
    assert {name: label.name for name, label in read_label_table(table, RULES).items()} == {
        "S-1": "tumor",
        "S-2": "normal",
    }
    table.write_text("slide_id,label\nS-1,stroma\n")
    with pytest.raises(CohortError, match="line 2: 'stroma' is no class"):
        read_label_table(table, RULES)
