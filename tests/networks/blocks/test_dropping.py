"""Dropout of few random bits."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks.blocks.dropping import drop_, drop_factor, dropped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_of_the_values_is_zeroed_and_the_mean_is_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.ones(400, 501, dtype=dtype)
    for result in (dropped(rows, 0.1, True), drop_(rows.clone(), 0.1)):
        assert (result == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
        assert result.unique().tolist() == [0, torch.tensor(drop_factor(rows, 0.1)).to(dtype).item()]
        assert (result == 0).float().mean(dim=0).std() < 0.03  # no column, and no place of four, is favoured
    assert drop_factor(rows, 0.1) == pytest.approx(1 / 0.9, abs=2e-5)


def test_the_gradient_is_that_of_the_values_kept_and_nothing_happens_outside_training() -> None:
    rows = torch.ones(30, 7, requires_grad=True)
    result = dropped(rows, 0.5, True)
    assert 0 < (result == 0).sum() < rows.numel()
    (gradient,) = torch.autograd.grad(result.sum(), rows)
    torch.testing.assert_close(gradient, result)
    assert dropped(rows, 0.5, False) is rows


def test_a_seed_draws_the_same_values_again() -> None:
    rows = torch.ones(10, 10)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(dropped(rows, 0.5, True))
    assert torch.equal(*results)


def test_networks_side_by_side_under_vmap_draw_each_for_itself() -> None:
    rows, scale = torch.ones(3, 20, 7), torch.ones(3, requires_grad=True)

    def one(scale: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return dropped(scale * rows, 0.5, True)

    torch.manual_seed(0)
    result = torch.vmap(one, randomness="different")(scale, rows)
    assert not torch.equal(result[0], result[1])
    (gradient,) = torch.autograd.grad(result.sum(), scale)
    torch.testing.assert_close(gradient, result.sum(dim=(1, 2)))
    with pytest.raises(RuntimeError, match="needs randomness='different'"):
        torch.vmap(one, randomness="same")(scale, rows)
