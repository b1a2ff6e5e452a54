"""Class weights and balanced draws: exact values, and what is refused."""

import logging

import numpy as np
import pytest
import torch
from monai.data import Dataset
from sklearn.utils.class_weight import compute_class_weight

from monai_mil.errors import SettingsError
from monai_mil.losses import BagBCE, bag_loss
from monai_mil.training import ClassBalance

NAMES = ["low", "mid", "high"]
SEVERAL = [[1, 0], [1, 0], [1, 1], [0, np.nan], [0, 0], [0, 0], [0, 0], [np.nan, np.nan]]


def data(labels):
    return Dataset([{"label": label} for label in labels])


def test_balanced_weights_are_those_of_scikit_learn():
    labels = [0] * 6 + [1] * 3 + [2]
    balance = ClassBalance(data(labels), NAMES, "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balance.positive_weights == pytest.approx(expected.tolist())
    assert balance.negative_weights is None
    assert balance.sampler() is None


@pytest.mark.parametrize("given", [[1, 3], [2.0, 6.0]])
def test_given_weights_have_the_mean_1_over_the_cases(given):
    labels = [0, 0, 0, 1]
    balance = ClassBalance(data(labels), ["normal", "tumor"], given)
    assert balance.positive_weights == pytest.approx([4 / 6, 12 / 6])
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torchs = torch.nn.CrossEntropyLoss(torch.tensor(given, dtype=torch.float32))(logits, torch.tensor(labels))
    ours = bag_loss(positive_weights=balance.positive_weights)({"logits": logits}, torch.tensor(labels))
    torch.testing.assert_close(ours, torchs)


def test_one_output_for_two_classes_has_a_weight_for_either_label():
    balance = ClassBalance(data([0, 0, 0, 1]), ["negative", "positive"], "balanced", one_output=True)
    assert balance.negative_weights == pytest.approx([2 / 3])
    assert balance.positive_weights == pytest.approx([2.0])
    loss = BagBCE(positive_weights=balance.positive_weights, negative_weights=balance.negative_weights)
    value = loss({"logits": torch.zeros(2, 1)}, torch.tensor([0, 1]))
    assert value.item() == pytest.approx(np.log(2) * (2 / 3 + 2) / 2)


def test_labels_that_do_not_exclude_each_other_are_balanced_one_by_one():
    balance = ClassBalance(data(SEVERAL), ["a", "b"], "balanced", multi_label=True)
    positive, negative = np.array([3, 1]), np.array([4, 5])  # what is not known does not count
    known = positive + negative
    assert balance.positive_weights == pytest.approx((known / (2 * positive)).tolist())
    assert balance.negative_weights == pytest.approx((known / (2 * negative)).tolist())
    ratio = np.divide(balance.positive_weights, balance.negative_weights)
    assert ratio == pytest.approx((negative / positive).tolist()), "BCE's pos_weight"


def test_given_weights_of_several_labels_are_those_of_label_1():
    balance = ClassBalance(data(SEVERAL), ["a", "b"], [2, 10], multi_label=True)
    assert np.divide(balance.positive_weights, balance.negative_weights) == pytest.approx([2, 10])
    mean = np.multiply(balance.positive_weights, [3, 1]) + np.multiply(balance.negative_weights, [4, 5])
    assert mean / [7, 6] == pytest.approx([1, 1])


def drawn(balance):
    return list(balance.sampler())


def test_the_sampler_draws_every_class_as_often():
    labels = [0] * 9 + [1] * 2 + [2]
    places = drawn(ClassBalance(data(labels), NAMES, sampler="balanced"))
    assert np.bincount([labels[place] for place in places]).tolist() == [4, 4, 4]


def test_of_several_labels_the_sampler_draws_every_one_and_none():
    places = drawn(ClassBalance(data(SEVERAL * 3), ["a", "b"], sampler="balanced", multi_label=True))
    kinds = [place % 8 for place in places]
    with_a, with_b = sum(kind in (0, 1, 2) for kind in kinds), kinds.count(2)
    assert len(places) == 24
    assert 8 <= with_b <= 8 + 3  # 8 drawn for it, and for the other label up to the three cases that have both
    assert with_a == 16  # 8 drawn for it, and those of the other
    assert 7 not in kinds, "of it nothing is known"


def refusal(*args, **options):
    with pytest.raises(SettingsError) as raised:
        ClassBalance(*args, **options)
    return str(raised.value)


def test_what_is_refused():
    few = data([0, 0, 2])
    assert refusal(few, NAMES, [1, 2]) == (
        "class_weights [1, 2]: 2 numbers for 3 classes; give one for each of low, mid, high, in this order"
    )
    assert "class_weights [1, 0, 1]: every weight must be above 0" in refusal(few, NAMES, [1, 0, 1])
    for wrong in ("even", [1, "2", 3], [1, float("nan"), 1], [True, 1, 1], 3):
        assert "may be balanced, a list of numbers, or left out" in refusal(few, NAMES, wrong)
    assert "sampler 'weighted': may be balanced" in refusal(few, NAMES, None, "weighted")
    assert "class_weights balanced: no training case is 'mid';" in refusal(few, NAMES, "balanced")
    assert "sampler balanced: no training case is 'mid';" in refusal(few, NAMES, None, "balanced")
    always = data([[1, 0], [1, 1]])
    assert "every training case is 'a';" in refusal(always, ["a", "b"], "balanced", multi_label=True)
    assert refusal(few, None, "balanced", "balanced").startswith("class_weights balanced and sampler balanced: what ")


def test_weights_are_told_and_that_one_correction_is_enough(caplog):
    caplog.set_level(logging.INFO)
    ClassBalance(data([0, 0, 0, 1]), ["normal", "tumor"], "balanced", "balanced").tell()
    assert "class weights: normal 0.6667, tumor 2" in caplog.text
    assert "correct the same twice" in caplog.text
    caplog.clear()
    for one in ({}, {"class_weights": [1, 2]}, {"sampler": "balanced"}):
        ClassBalance(data([0, 0, 0, 1]), ["normal", "tumor"], **one).tell()
    assert "twice" not in caplog.text
