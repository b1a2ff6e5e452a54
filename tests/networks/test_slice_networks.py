"""Networks without order between slices, and the ceiling trained on slice labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_mil.networks import FeatureMaxPooling, FeatureMeanPooling, SliceABMIL, SliceClassifier, instance_scores

STREAMING = pytest.mark.parametrize("network_class", [SliceABMIL, FeatureMeanPooling, FeatureMaxPooling])


@STREAMING
def test_a_bag_in_chunks_from_elsewhere_equals_the_whole_bag(network_class: type[SliceABMIL]) -> None:
    network = network_class(16, 2).eval()
    rows = torch.randn(5000, 16).half()
    rows[10] = rows[4000]  # a tie across chunks
    output = network.pool_chunks(chunk.numpy() for chunk in rows.split(777))
    whole = network(rows.T[None], return_dict=True)
    assert output.keys() == whole.keys()
    for key in output:
        torch.testing.assert_close(output[key], whole[key], rtol=1e-5, atol=1e-6)


@STREAMING
def test_chunks_are_checked_like_a_bag(network_class: type[SliceABMIL]) -> None:
    network = network_class(4, 2)
    with pytest.raises(ValueError, match="without instances"):
        network.pool_chunks([])
    with pytest.raises(ValueError, match="not finite"):
        network.pool_chunks([torch.zeros(3, 4), torch.full((3, 4), torch.nan)])


def test_plain_attention_in_chunks_takes_a_mask_with_holes() -> None:
    network = SliceABMIL(8, 2).eval()
    image, mask = torch.randn(2, 8, 9), torch.rand(2, 9) < 0.6
    mask[:, 4] = True
    whole = network(image, mask, return_dict=True)
    with torch.no_grad():
        chunked = network(image, mask, return_dict=True)
    torch.testing.assert_close(chunked, whole)


def test_plain_attention_does_not_know_the_order_of_the_slices() -> None:
    network, image, order = SliceABMIL(6, 2, attention_dim=4), torch.randn(1, 6, 20), torch.randperm(20)
    given, shuffled = (network(bag, return_dict=True) for bag in (image, image[:, :, order]))
    torch.testing.assert_close(shuffled["logits"], given["logits"])
    torch.testing.assert_close(shuffled["attention"], given["attention"][:, :, order])


def test_a_slice_scores_the_share_of_features_it_gives_the_maximum() -> None:
    image = torch.tensor([[[1.0, 5.0, 2.0], [9.0, 0.0, 9.0], [0.0, 0.0, 3.0], [4.0, 6.0, 5.0]]])
    output = FeatureMaxPooling(4, 2)(image, return_dict=True)
    torch.testing.assert_close(output["bag"], torch.tensor([[5.0, 9.0, 3.0, 6.0]]))
    torch.testing.assert_close(instance_scores(output), torch.tensor([0.25, 0.5, 0.25]).expand(1, 2, 3))


@pytest.mark.parametrize("network_class", [FeatureMeanPooling, FeatureMaxPooling])
def test_the_reference_s_classifier_gives_the_reference_s_logits(network_class: type[nn.Module]) -> None:
    classifier, image = nn.Linear(4, 3), torch.randn(2, 4, 9)
    network = network_class.from_reference({f"clf.{k}": v for k, v in classifier.state_dict().items()})
    pooled = image.mean(2) if network_class is FeatureMeanPooling else image.amax(2)
    torch.testing.assert_close(network(image), classifier(pooled))


def test_mean_pooling_finds_nothing() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    output = FeatureMeanPooling(4, 1)(torch.randn(1, 4, 5), mask, return_dict=True)
    torch.testing.assert_close(instance_scores(output), torch.tensor([[[0.25, 0.25, 0.25, 0.25, 0.0]]]))


@pytest.mark.parametrize("kernel", [1, 3, 12])
def test_the_slice_classifier_is_a_depthwise_window_then_a_linear_layer(kernel: int) -> None:
    network = SliceClassifier(8, 2, kernel)
    image = torch.randn(2, 8, 20)
    window = F.conv1d(image, network.window.weight, network.window.bias, padding="same", groups=8)
    expected = network.classifier(window.mT).mT
    output = network(image, return_dict=True)
    torch.testing.assert_close(output["instance_logits"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output["logits"], expected.amax(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(instance_scores(output), torch.sigmoid(expected), rtol=1e-5, atol=1e-6)


def test_a_slice_classifier_s_checkpoint_loads() -> None:
    source = SliceClassifier(6, 2, kernel=4)
    state = {
        name.replace("window.", "instance_conv.conv.").replace("classifier.", "clf."): value
        for name, value in source.state_dict().items()
    }
    image = torch.randn(1, 6, 9)
    torch.testing.assert_close(SliceClassifier.from_reference(state)(image), source(image))
