"""A recipe makes the optimiser and schedule of its words, and says which epoch is kept."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from monai_mil.training import Recipe

GIVEN = {"lr": 0.5, "weight_decay": 0.25, "max_epochs": 4}


def rates(recipe, epochs):
    optimizer = recipe.optimizer_class(params=[torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule, found = recipe.lr_scheduler(optimizer, T_max=epochs), []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_the_learning_rate_goes_the_way_that_was_said():
    assert rates(Recipe("SGD", **GIVEN), 2) == [0.5] * 3
    assert rates(Recipe("SGD", schedule="steps", milestones=(1,), gamma=0.2, **GIVEN), 2) == [0.5, 0.1, 0.1]
    cosine = Recipe("SGD", schedule="cosine", lowest_lr=0.1, **GIVEN)
    assert rates(cosine, 2) == pytest.approx([0.5, 0.3, 0.1])
    made = cosine.lr_scheduler(cosine.optimizer_class(params=[torch.zeros(1, requires_grad=True)], lr=1), T_max=9)
    assert isinstance(made, CosineAnnealingLR)
    assert made.T_max == 9


def test_the_optimizer_has_the_betas_that_were_said():
    parameters = [torch.zeros(1, requires_grad=True)]
    plain, other = (Recipe("Adam", betas=betas, **GIVEN).optimizer_class for betas in (None, [0.5, 0.9]))
    assert plain(params=parameters, lr=1).defaults["betas"] == (0.9, 0.999)
    made = other(params=parameters, lr=1, weight_decay=0.25)
    assert (made.defaults["betas"], made.defaults["weight_decay"]) == ((0.5, 0.9), 0.25)


def test_an_epoch_is_kept_by_the_metric_or_by_the_loss():
    by_metric, by_loss = (Recipe("Adam", select=select, **GIVEN) for select in ("metric", "loss"))
    assert by_metric.is_better(2, 1)
    assert by_loss.is_better(1, 2)
    assert (by_metric.mode, by_loss.mode) == ("max", "min")
    metrics, further = {"val_auroc": 1}, {"val_f1": 2}
    assert by_metric.key_metric(metrics) == metrics
    assert by_metric.further_metrics(metrics, further) == further
    assert list(by_loss.key_metric(metrics)) == ["val_loss"]
    assert by_loss.further_metrics(metrics, further) == {"val_auroc": 1, "val_f1": 2}


def test_without_a_patience_every_epoch_is_run():
    assert Recipe("Adam", **GIVEN).patience == 4
    assert Recipe("Adam", patience=2, **GIVEN).patience == 2


@pytest.mark.parametrize("wrong", [{"optimizer": "Addam"}, {"schedule": "linear"}, {"select": "f1"}])
def test_what_a_recipe_does_not_know_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Recipe(**{"optimizer": "Adam", **GIVEN, **wrong})
