"""Which tokens of a tile lie on the slide."""

from __future__ import annotations

import numpy as np
import torch

from monai_mil.bags.tokens import token_mask


def test_tokens_whose_centre_lies_beyond_the_slide_are_masked() -> None:
    coords = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    mask = token_mask(coords, 100.0, (160, 124), (4, 5))
    assert mask.shape == (4, 4, 5)
    columns = torch.tensor([True, True, True, False, False])  # centres 110, 130, 150, 170, 190
    rows = torch.tensor([True, False, False, False])  # centres 112.5, 137.5, ...
    assert mask[0].all()
    assert (mask[1] == columns).all()
    assert (mask[2] == rows[:, None]).all()
    assert (mask[3] == rows[:, None] & columns).all()


def test_tokens_that_all_lie_on_the_slide_need_no_mask() -> None:
    coords = torch.tensor([[0, 0], [100, 0]])
    assert token_mask(coords, 100.0, (200, 100), (14, 14)) is None
    assert token_mask(coords, 100.0, (197, 97), (14, 14)) is None, "the last centres lie at 196.4 and 96.4"


def test_a_token_s_step_may_be_a_fraction_of_a_pixel() -> None:
    mask = token_mask(np.array([[1000, 0]]), 513.1, (1480, 600), (14, 14))
    centres = 1000 + (np.arange(14) + 0.5) * 513.1 / 14
    assert mask[0, 0].tolist() == (centres < 1480).tolist()
