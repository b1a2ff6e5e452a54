"""The attention's mean and width, in slices or millimetres."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks.blocks.moments import attention_moments


def test_uniform_attention_has_the_mean_and_width_of_its_indices() -> None:
    mean, std = attention_moments(torch.full((2, 3, 1000), 1e-3))
    torch.testing.assert_close(mean, torch.full((2, 3), 500.5))
    torch.testing.assert_close(std, torch.full((2, 3), ((1000**2 - 1) / 12) ** 0.5))


@pytest.mark.parametrize("origin", [0.0, -41_234.5])
def test_a_narrow_peak_far_from_the_origin_keeps_its_width(origin: float) -> None:
    positions = torch.arange(1727, dtype=torch.float64) * 0.625 + origin
    attention = torch.exp(-((positions - positions[1600]).square()) / (2 * 0.7**2))
    expected = attention_moments(attention[None, None], positions)
    mean, std = attention_moments(attention[None, None].float(), positions)
    torch.testing.assert_close(std, expected[1].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean, expected[0].float(), rtol=1e-6, atol=1e-3)


def test_padding_and_the_scale_of_the_weights_do_not_matter() -> None:
    attention, positions = torch.rand(2, 4, 9), torch.randn(2, 9)
    mask = torch.arange(9) < torch.tensor([[6], [9]])
    dirty, far = attention.clone(), positions.clone()
    dirty[0, :, 6:], far[0, 6:] = torch.nan, torch.nan
    mean, std = attention_moments(3 * dirty, far, mask)
    alone = attention_moments(attention[:1, :, :6], positions[0, :6])
    torch.testing.assert_close((mean[:1], std[:1]), alone)


def test_half_precision_and_autocast_keep_the_digits() -> None:
    attention = torch.softmax(torch.randn(1, 2, 1000), dim=2).half()
    expected = attention_moments(attention.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments = attention_moments(attention)
    assert all(value.dtype == torch.float32 for value in moments)
    torch.testing.assert_close(moments, tuple(value.float() for value in expected))


def test_one_slice_has_no_width() -> None:
    mean, std = attention_moments(torch.ones(1, 1, 1), torch.tensor([7.5]))
    assert mean.item() == 7.5
    assert std.item() == 0.0


def test_the_moments_of_the_official_loss() -> None:
    """Of the scores ``sin(0.7 j (h + 1) + b) + 0.05 j (1 - 0.3 h)`` of slices j from 1, heads h and scans b from 0."""
    place = torch.arange(1, 13, dtype=torch.float64)
    scores = torch.stack(
        [
            torch.stack([torch.sin(0.7 * place * (h + 1) + b) + 0.05 * place * (1 - 0.3 * h) for h in range(3)])
            for b in (0, 1)
        ]
    )
    mask = torch.arange(12) < torch.tensor([[7], [12]])
    mean, std = attention_moments(scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=2), mask=mask)
    torch.testing.assert_close(mean[0], torch.tensor([3.032358, 3.9096994, 4.1505473]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(std[0], torch.tensor([1.616764, 2.1572073, 2.2290801]).double(), rtol=0, atol=1e-6)
    assert (mean[1, 0].item(), std[1, 0].item()) == pytest.approx((7.3814145, 3.73046), abs=1e-6)
