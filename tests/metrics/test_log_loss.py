import math

import pytest
import torch
from ignite.engine import Engine
from torch.nn import functional as F

from monai_mil.metrics import LogLoss
from monai_mil.metrics.log_loss import log_loss

NAN = math.nan


def test_it_is_torch_s_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    prob, label = torch.rand(50, 3, generator=generator), torch.randint(2, (50, 3), generator=generator).float()
    assert log_loss(prob, label) == pytest.approx(float(F.binary_cross_entropy(prob, label)), rel=1e-6)


def test_unknown_labels_leave_the_mean_of_their_bag_and_bags_without_any_leave_the_mean():
    prob = torch.tensor([[0.9, 0.2], [0.5, 0.5], [0.3, 0.7]])
    label = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]])
    expected = (-math.log(0.9) + (-math.log(0.7) - math.log(0.7)) / 2) / 2
    assert log_loss(prob, label) == pytest.approx(expected, rel=1e-6)


def test_sure_answers_stay_finite():
    prob, label = torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert log_loss(prob, label) == pytest.approx(200 / 3)
    assert log_loss(prob[:2], label[:2], highest=0.999) == pytest.approx((-math.log(0.999) - math.log(0.001)) / 2)


def epoch(prob, label):
    engine = Engine(lambda _, item: {"pred": item[0][None], "label": item[1][None]})
    LogLoss().attach(engine, "val_loss")
    engine.run(list(zip(prob, label, strict=True)))
    return engine.state.metrics["val_loss"]


def test_a_monai_engine_reports_it_over_the_whole_epoch():
    prob, label = torch.tensor([[0.9], [0.4], [0.2]]), torch.tensor([1, 1, 0])
    assert epoch(prob, label) == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3, rel=1e-5)


def test_a_run_that_has_diverged_has_no_loss_and_says_so():
    with pytest.warns(UserWarning, match="no loss"):
        assert math.isnan(epoch(torch.tensor([[NAN], [0.4]]), torch.tensor([1, 0])))


def test_class_indices_are_told_from_labels() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(20, 3), torch.randint(3, (20, 1))
    expected = torch.nn.functional.cross_entropy(logits, label[:, 0]).item()
    assert log_loss(logits.softmax(dim=1), label) == pytest.approx(expected, abs=1e-6)
    unknown = label.double()
    unknown[5:] = torch.nan
    expected = torch.nn.functional.cross_entropy(logits[:5], label[:5, 0]).item()
    assert log_loss(logits.softmax(dim=1), unknown) == pytest.approx(expected, abs=1e-6)
