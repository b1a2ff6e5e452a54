"""The convolution along the tokens as products of blocks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from monai_mil.networks.blocks.token_mix import mix_tokens


@pytest.mark.parametrize("count", [1, 64, 131])
def test_blocks_give_what_a_convolution_gives_and_its_gradients(count: int) -> None:
    value = torch.randn(2, count, 3, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, 5, dtype=torch.double, requires_grad=True)
    mixed = mix_tokens(value.transpose(1, 2), weight)
    channels = value.permute(0, 3, 2, 1).flatten(0, 1)
    expected = F.conv1d(channels, weight, padding=2, groups=3).unflatten(0, [2, 4]).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixed, expected)
    seed = torch.randn_like(mixed)
    ours, theirs = (torch.autograd.grad(result, (value, weight), seed) for result in (mixed, expected))
    torch.testing.assert_close(ours, theirs)
