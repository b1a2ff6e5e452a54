"""Batches and inferers feed a network what it needs."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from monai_mil.networks import ABMIL
from monai_mil.training import FullOutputInferer, prepare_bag_batch


def test_a_padded_batch_brings_its_mask() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    batch = {"image": torch.randn(2, 4, 3), "label": torch.tensor([0, 1]), "mask": mask}
    image, label, positional, keywords = prepare_bag_batch(batch, "cpu", False)
    assert label.tolist() == [0, 1]
    assert positional == ()
    output = FullOutputInferer()(image, ABMIL(4, 2), *positional, **keywords)
    assert output["attention"][0, 0, 2] == 0
    torch.testing.assert_close(output["mask"], mask)


def test_mask_and_label_may_be_absent() -> None:
    image, label, _, keywords = prepare_bag_batch({"image": MetaTensor(torch.randn(1, 4, 3))}, "cpu")
    assert label is None
    assert keywords == {}
    output = FullOutputInferer()(image, ABMIL(4, 2), **keywords)
    assert type(output["logits"]) is torch.Tensor
    assert "mask" not in output
