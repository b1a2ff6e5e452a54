"""Otsu's threshold against scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from monai_mil.networks.blocks.otsu import otsu_threshold


def sample(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.random(size)
    if kind == "skewed":
        return rng.beta(0.3, 5, size)
    lesion = max(1, size // 50)
    return np.concatenate([rng.normal(0.1, 0.01, size), rng.normal(0.8, 0.02, lesion)])


@pytest.mark.parametrize("kind", ["uniform", "skewed", "two modes"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_threshold_is_scikit_image_s_to_the_last_bit(kind: str, dtype: type) -> None:
    for seed, size in enumerate([2, 3, 10, 256, 1000, 70_000, 300_000]):
        values = sample(kind, size, seed).astype(dtype)
        assert otsu_threshold(torch.from_numpy(values)).item() == threshold_otsu(values)


def test_values_on_the_edges_of_bins_are_counted_as_numpy_does() -> None:
    values = (np.arange(257, dtype=np.float32) / 256) ** 2
    values = np.repeat(values, np.arange(257) % 7 + 1)
    assert otsu_threshold(torch.from_numpy(values)).item() == threshold_otsu(values)


def test_every_row_has_its_own_threshold() -> None:
    values = torch.rand(2, 3, 5000) ** torch.arange(1, 7).reshape(2, 3, 1)
    thresholds = otsu_threshold(values)
    expected = [[threshold_otsu(row.numpy()) for row in bag] for bag in values]
    torch.testing.assert_close(thresholds, torch.tensor(expected), rtol=0, atol=0)


def test_values_that_are_not_real_do_not_count() -> None:
    values = torch.rand(2, 3, 4000) ** 3
    real = torch.rand(2, 1, 4000) < 0.7
    thresholds = otsu_threshold(values.masked_fill(~real, 50.0), real)
    for bag in range(2):
        for row in range(3):
            assert thresholds[bag, row].item() == threshold_otsu(values[bag, row][real[bag, 0]].numpy())


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_values_are_their_own_threshold(value: float) -> None:
    values = torch.full((100,), value)
    assert otsu_threshold(values).item() == threshold_otsu(values.numpy())


def test_the_first_of_equally_good_splits_wins_whatever_lies_between() -> None:
    values = torch.tensor([0.0, 1.0]).repeat(500)
    torch.testing.assert_close(otsu_threshold(values), torch.tensor(0.5 / 256))


def test_the_device_is_never_waited_for() -> None:
    """A meta tensor has no values: whatever asks for one fails."""
    assert otsu_threshold(torch.empty(2, 3, 100_000, device="meta")).shape == (2, 3)
    real = torch.empty(2, 1, 100_000, dtype=torch.bool, device="meta")
    assert otsu_threshold(torch.empty(2, 3, 100_000, device="meta"), real).shape == (2, 3)


def test_it_scripts() -> None:
    values = torch.rand(2, 3, 100_000)
    assert torch.equal(torch.jit.script(otsu_threshold)(values), otsu_threshold(values))
