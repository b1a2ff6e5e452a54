"""SmoothMax: its formula, its limits, its digits."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks.blocks.smooth_max import smooth_max


def test_it_is_the_mean_weighted_by_the_exponential() -> None:
    values = torch.rand(2, 3, 50, dtype=torch.double, requires_grad=True)
    weights = torch.exp(8 * values)
    torch.testing.assert_close(smooth_max(values, 8.0), (weights * values).sum(2) / weights.sum(2))
    assert torch.autograd.gradcheck(lambda v: smooth_max(v, 8.0), values)


def test_its_gradient_polarises_the_map() -> None:
    """``dp / dv_i = w_i (1 + alpha (v_i - p))``: what lies more than ``1 / alpha`` below ``p`` is pushed down."""
    values = torch.tensor([0.1, 0.5, 0.9, 0.95], dtype=torch.double, requires_grad=True)
    prob = smooth_max(values, 8.0)
    prob.backward()
    expected = torch.softmax(8 * values, 0) * (1 + 8 * (values - prob))
    torch.testing.assert_close(values.grad, expected.detach())
    assert (values.grad < 0).tolist() == [True, True, False, False]


def test_alpha_goes_from_the_mean_to_the_maximum() -> None:
    values = torch.rand(1000)
    torch.testing.assert_close(smooth_max(values, 0.0), values.mean())
    torch.testing.assert_close(smooth_max(values, 1e5), values.max(), rtol=1e-4, atol=0)


def test_a_large_alpha_stays_finite() -> None:
    values = torch.rand(1000, requires_grad=True)
    prob = smooth_max(values, 200.0)
    prob.backward()
    assert prob.isfinite()
    assert values.grad.isfinite().all()


def test_what_is_not_counted_does_not_matter() -> None:
    values, counted = torch.rand(2, 3, 100), torch.rand(2, 1, 100) < 0.5
    got = smooth_max(values.masked_fill(~counted, 1e6), 8.0, counted)
    expected = torch.stack([smooth_max(bag[:, real[0]], 8.0) for bag, real in zip(values, counted, strict=True)])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("count", [7_840, 2_000_000])
def test_float32_keeps_its_digits_over_a_whole_slide(count: int) -> None:
    values = torch.rand(count) ** 4
    torch.testing.assert_close(smooth_max(values, 8.0), smooth_max(values.double(), 8.0).float(), rtol=0, atol=1e-6)
