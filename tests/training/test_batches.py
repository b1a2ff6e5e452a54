"""Batches and inferers feed a network what it needs."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_mil.networks import ABMIL
from monai_mil.training import (
    FullOutputInferer,
    prepare_bag_batch,
    prepare_instance_batch,
    prepare_positioned_bag_batch,
)


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


def test_slices_bring_their_positions_and_tiles_their_corners() -> None:
    batch = {"image": torch.randn(2, 4, 3), "coords": torch.arange(12).reshape(2, 3, 2), "mask": torch.ones(2, 3)}
    *_, keywords = prepare_positioned_bag_batch(batch, "cpu")
    torch.testing.assert_close(keywords["positions"], batch["coords"].float())
    batch["positions_mm"] = torch.arange(6.0).reshape(2, 3) * 2.5
    image, label, positional, keywords = prepare_positioned_bag_batch(batch, "cpu")
    assert label is None
    output = FullOutputInferer()(image, ABMIL(4, 2), *positional, **keywords)
    torch.testing.assert_close(output["positions"], batch["positions_mm"])
    torch.testing.assert_close(output["mask"], torch.ones(2, 3, dtype=torch.bool))


def test_bags_without_positions_are_batches_too() -> None:
    *_, keywords = prepare_positioned_bag_batch({"image": torch.randn(1, 4, 3)}, "cpu")
    assert keywords == {}


def test_slice_labels_take_the_label_s_place() -> None:
    batch = {"image": torch.randn(1, 4, 3), "label": torch.tensor([1]), "instance_labels": torch.tensor([[0, 1, -1]])}
    _, label, _, _ = prepare_instance_batch(batch, "cpu")
    assert label.tolist() == [[0, 1, -1]]
    del batch["instance_labels"]
    with pytest.raises(ValueError, match="hold no 'instance_labels'"):
        prepare_instance_batch(batch, "cpu")
