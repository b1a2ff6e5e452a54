"""One call reads the instance scores of any network's output."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks import instance_scores


def test_attention_is_averaged_over_heads_and_the_same_for_every_class() -> None:
    attention = torch.rand(2, 4, 6)
    scores = instance_scores({"logits": torch.zeros(2, 3), "attention": attention})
    torch.testing.assert_close(scores, attention.mean(1, keepdim=True).repeat(1, 3, 1))


def test_a_heatmap_gives_the_highest_token_of_an_instance() -> None:
    heatmap = torch.rand(1, 2, 3, 4, 4)
    scores = instance_scores({"logits": torch.zeros(1, 2), "heatmap": heatmap, "attention": torch.rand(1, 1, 3)})
    torch.testing.assert_close(scores, heatmap.amax((3, 4)))


def test_an_output_without_any_names_its_keys() -> None:
    with pytest.raises(ValueError, match="bag, logits"):
        instance_scores({"logits": torch.zeros(1, 2), "bag": torch.zeros(1, 4)})
