"""Discrete-time survival: the likelihood by hand, its gradient, and where the bins come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_mil.losses import DiscreteSurvival, MILLoss, time_bins

EDGES = [0.0, 10.0, 20.0, 30.0, 42.0]


def by_hand(logits: list[float], place: int, event: bool) -> float:
    weights = [math.exp(value) for value in logits]
    incidence = [weight / sum(weights) for weight in weights]
    return -math.log(incidence[place]) if event else -math.log(1 - sum(incidence[: place + 1]))


@pytest.mark.parametrize(("time", "place"), [(0.5, 0), (9.99, 0), (10.0, 1), (25.0, 2)])
@pytest.mark.parametrize("event", [0, 1])
def test_a_patient_costs_what_the_formula_says(time: float, place: int, event: int) -> None:
    logits = [0.3, -1.2, 2.0, 0.1]
    loss = DiscreteSurvival(EDGES)({"logits": torch.tensor([logits])}, torch.tensor([[time, event]]))
    assert loss.item() == pytest.approx(by_hand(logits, place, bool(event)), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_over_patients_who_were_followed() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[5.0, 1], [25.0, 0], [math.nan, 1], [35.0, 1]])
    loss = DiscreteSurvival(EDGES)
    single = [loss({"logits": logits[[row]]}, label[[row]]).item() for row in (0, 1, 3)]
    assert loss({"logits": logits}, label).item() == pytest.approx(np.mean(single), rel=1e-6)
    assert loss({"logits": logits[[2]]}, label[[2]]).item() == 0


def test_a_patient_censored_in_the_last_bin_tells_nothing() -> None:
    logits = torch.randn(1, 4, requires_grad=True)
    loss = DiscreteSurvival(EDGES)({"logits": logits}, torch.tensor([[41.0, 0.0]]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_time_behind_the_last_edge_is_in_the_last_bin() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.1]])
    loss = DiscreteSurvival(EDGES)
    last = loss({"logits": logits}, torch.tensor([[41.0, 1.0]]))
    assert torch.equal(loss({"logits": logits}, torch.tensor([[400.0, 1.0]])), last)


@pytest.mark.parametrize("event", [0, 1])
def test_confident_wrong_networks_have_a_finite_loss_and_gradient(event: int) -> None:
    logits = torch.tensor([[400.0, -400.0, -400.0, -500.0]], requires_grad=True)
    loss = DiscreteSurvival(EDGES)({"logits": logits}, torch.tensor([[15.0, event]]))
    loss.backward()
    assert loss.item() == pytest.approx(800, abs=1)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] > 0.99


def test_half_precision_logits_are_judged_in_float32() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    label = torch.tensor([[5.0, 1], [25.0, 0]])
    loss = DiscreteSurvival(EDGES)
    assert loss({"logits": logits}, label).dtype == torch.float32
    assert torch.equal(loss({"logits": logits}, label), loss({"logits": logits.float()}, label))


def test_the_gradient_is_that_of_numerical_differences() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[5.0, 1], [25.0, 0], [5.0, 0], [35.0, 1], [41.0, 0]])
    loss = DiscreteSurvival(EDGES)
    assert torch.autograd.gradcheck(lambda values: loss({"logits": values}, label), logits)


def test_bins_are_the_root_of_the_events_in_equal_steps_up_to_the_last_event() -> None:
    follow_up = [[10, 1], [20, 1], [30, 1], [40, 1], [24, 1], [55, 0], [3, 0], [math.nan, 1]]
    edges = time_bins(follow_up)
    assert edges[:-1] == pytest.approx([0, 40 / 3, 80 / 3])
    assert 55 < edges[-1] < 55.01
    assert len(time_bins(follow_up, count=8)) == 9


def test_an_event_at_the_longest_follow_up_is_in_the_last_bin() -> None:
    edges = time_bins([[10, 1], [20, 1]])
    loss = DiscreteSurvival(edges)
    logits = torch.tensor([[0.0, 3.0]])
    assert loss({"logits": logits}, torch.tensor([[20.0, 1.0]])).item() == pytest.approx(by_hand([0, 3], 1, True))


@pytest.mark.parametrize("follow_up", [[[5, 1], [9, 0]], [[5, 1], [5, 1]], []])
def test_bins_need_two_events_at_different_times(follow_up: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"but the . training patients have . events at [01]; see .*--time_edges"):
        time_bins(follow_up)


def test_a_network_with_another_number_of_outputs_is_told() -> None:
    with pytest.raises(ValueError, match="2 outputs for 4 time bins; set num_classes=4"):
        DiscreteSurvival(EDGES)({"logits": torch.zeros(1, 2)}, torch.tensor([[5.0, 1]]))
    with pytest.raises(ValueError, match="must rise"):
        DiscreteSurvival([0.0, 5.0, 5.0])


def test_it_is_a_term_of_the_loss_a_trainer_calls() -> None:
    loss = MILLoss({"survival": DiscreteSurvival(EDGES)})
    value = loss({"logits": torch.zeros(1, 4)}, torch.tensor([[5.0, 1.0]]))
    assert value.item() == pytest.approx(math.log(4))
