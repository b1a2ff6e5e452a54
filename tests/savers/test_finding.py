import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_mil.savers.case import Case
from monai_mil.savers.finding import finding_attributes, scale_attributes
from monai_mil.savers.scores import drawn_class, read_scores, usual_class

CLASSES = ("normal", "tumor")


def case(**keys):
    coords = torch.tensor([[0, 0], [100, 0], [0, 100], [100, 100]])
    return Case.of({"slide_id": "a", "image": MetaTensor(torch.zeros(4, 4)), "coords": coords} | keys)


@pytest.mark.parametrize(
    ("pred", "points", "called", "finding", "prob", "point"),
    [
        ([0.997, 0.003], None, False, "tumor", 0.003, None),
        ([0.2, 0.8], None, True, "tumor", 0.8, None),
        ([0.2], [0.15], True, "tumor", 0.2, 0.15),
        ([0.2], [0.3], False, "tumor", 0.2, 0.3),
        ([0.8, 0.2], [0.3], False, "tumor", 0.2, 0.3),
        ([0.8, 0.2], [0.1], True, "tumor", 0.2, 0.1),
    ],
)
def test_a_heatmap_says_whether_its_finding_is_called(pred, points, called, finding, prob, point):
    said = finding_attributes(case(pred=torch.tensor(pred)), None, CLASSES, False, points)
    assert (said["called"], said["finding"]) == (called, finding)
    assert said["finding_probability"] == pytest.approx(prob)
    assert said.get("operating_point") == (None if point is None else pytest.approx(point))


def test_labels_that_do_not_exclude_each_other_are_called_one_by_one():
    item = case(pred=torch.tensor([0.9, 0.2]))
    assert [finding_attributes(item, index, ("x", "y"), True, None)["called"] for index in (0, 1)] == [True, False]


def test_nothing_is_called_by_a_survival_network_or_without_classes():
    assert (
        finding_attributes(case(pred=torch.tensor([3.0, -1.0]), risk=torch.tensor(0.3)), None, CLASSES, False, None)
        == {}
    )
    assert finding_attributes(case(pred=torch.tensor([3.0, -1.0])), None, None, False, None) == {}


def test_a_normal_slide_shows_the_evidence_of_the_finding():
    scores = torch.tensor([[0.99, 0.98, 0.97, 0.99], [0.01, 0.02, 0.03, 0.01]])
    item = case(pred=torch.tensor([0.997, 0.003]), instance_scores=scores, instance_logits=scores)
    key, drawn, _ = read_scores(item, None, None)
    np.testing.assert_array_equal(drawn, scores[1])
    assert scale_attributes(item, key, drawn) == {"limits": (0.0, 1.0)}


def test_attention_of_a_class_or_of_heads_is_measured_by_the_even_share_of_the_whole_bag():
    heads = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    mask = torch.tensor([True, True, True, False])
    per_class = case(attention=heads, instance_scores=heads, pred=torch.tensor([0.1, 0.9]))
    key, drawn, _ = read_scores(per_class, None, None)
    assert (key, scale_attributes(per_class, key, drawn)) == ("instance_scores", {"uniform": 0.25})
    averaged = case(attention=heads, mask=mask)
    assert scale_attributes(averaged, *read_scores(averaged, None, None)[:2]) == {"uniform": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("classes", "multi_label", "drawn"),
    [(("normal", "tumor"), False, 1), (("LUAD", "LUSC"), False, 0), (("LUAD", "LUSC"), True, 0), (None, False, 1)],
)
def test_of_two_findings_the_probable_one_is_drawn(classes, multi_label, drawn):
    item = case(pred=torch.tensor([0.9, 0.1]), instance_scores=torch.rand(2, 4))
    assert drawn_class(item, usual_class(None, classes, multi_label), multi_label) == drawn
    assert usual_class("all", classes, multi_label) == "all"
    assert drawn_class(item, usual_class(1, classes, multi_label), multi_label) == 1
