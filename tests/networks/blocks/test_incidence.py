"""From logits of time bins to survival and risk."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks.blocks import survival_curve, survival_risk


def test_survival_is_one_minus_the_cumulative_incidence() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = 1 - logits.softmax(dim=1).cumsum(dim=1)
    torch.testing.assert_close(survival_curve(logits), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(survival_risk(logits), -expected.sum(dim=1))


def test_an_earlier_event_is_more_risk() -> None:
    logits = 10 * torch.eye(4)
    assert survival_risk(logits).diff().max() < 0
    assert survival_risk(logits[0]).item() == pytest.approx(0, abs=1e-3)


def test_a_survival_that_is_tiny_is_not_lost() -> None:
    curve = survival_curve(torch.tensor([20.0, 0.0, -20.0]))
    assert curve[1].item() == pytest.approx(torch.exp(torch.tensor(-40.0)).item(), rel=1e-5)
    assert curve.dtype == survival_curve(torch.zeros(2, dtype=torch.float16)).dtype == torch.float32
