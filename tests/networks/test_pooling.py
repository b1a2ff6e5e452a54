"""Mean and max pooling do what their names say."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks import MaxPooling, MeanPooling


@pytest.mark.parametrize(("cls", "pool"), [(MeanPooling, torch.Tensor.mean), (MaxPooling, torch.Tensor.amax)])
def test_the_bag_s_logits_pool_the_instances_logits(cls, pool) -> None:
    network = cls(8, 3)
    output = network(torch.randn(2, 8, 5), return_dict=True)
    torch.testing.assert_close(output["logits"], pool(output["instance_logits"], 2))
    torch.testing.assert_close(output["instance_scores"].sum(1), torch.ones(2, 5))


def test_labels_that_do_not_exclude_each_other_are_scored_apart() -> None:
    output = MaxPooling(8, 3, multi_label=True)(torch.randn(1, 8, 5), return_dict=True)
    torch.testing.assert_close(output["instance_scores"], torch.sigmoid(output["instance_logits"]))


def test_a_bag_in_chunks_from_elsewhere_equals_the_whole_bag() -> None:
    network = MeanPooling(8, 2)
    rows = torch.randn(500, 8)
    torch.testing.assert_close(network.pool_chunks(rows.split(77))["logits"], network(rows.T[None]))
    with pytest.raises(ValueError, match="without instances"):
        network.pool_chunks([])
