"""Classifiers of whole scans: what they answer, what their map says, MONAI's DenseNet, sizes that grow."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import DenseNet
from torch.nn import functional as F

from monai_mil.networks import VolumeClassifier, instance_scores
from monai_mil.networks.volume_classifier import ConvolutionEncoder3D
from monai_mil.training import ProgressiveResizing


def network(**options: object) -> VolumeClassifier:
    torch.manual_seed(0)
    return VolumeClassifier(ConvolutionEncoder3D(1, (2, 3)), 3, 2, **({"size": (4, 8, 8)} | options)).double().eval()


def test_it_is_what_the_equations_say() -> None:
    made, scan = network(), torch.randn(1, 1, 9, 12, 10, dtype=torch.float64)
    features = made.encoder(F.interpolate(scan, (4, 8, 8), mode="trilinear", align_corners=False))[0]
    output = made(scan, return_dict=True)
    torch.testing.assert_close(output["logits"][0], made.classifier(features.mean(dim=(1, 2, 3))))
    evidence = made.classifier(features.movedim(0, -1)).movedim(-1, 0)
    ones = made(F.interpolate(scan, (1, 8, 8)), return_dict=True)["heatmap"]
    assert ones.shape == (1, 2, 1, 2, 2)
    expected = torch.sigmoid(F.interpolate(evidence[None], (9, 2, 2), mode="trilinear", align_corners=False))
    torch.testing.assert_close(output["heatmap"], expected)
    torch.testing.assert_close(instance_scores(output), expected.flatten(3).amax(dim=3))


def test_a_scan_of_that_size_is_seen_as_it_is() -> None:
    made, scan = network(), torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(made(scan), made.classifier(made.encoder(scan).mean(dim=(2, 3, 4))))


def test_monai_s_densenet_is_an_encoder() -> None:
    features = DenseNet(3, 1, 1, init_features=4, growth_rate=2, block_config=(1, 1), bn_size=1).features
    made = VolumeClassifier(features, 5, 1, size=(8, 16, 16)).eval()
    assert made(torch.randn(1, 1, 3, 20, 20), return_dict=True)["heatmap"].shape[:3] == (1, 1, 3)


def test_what_is_no_scan_is_refused() -> None:
    with pytest.raises(ValueError, match="a scan of pixels must be"):
        network()(torch.zeros(1, 8, 5))


def test_sizes_grow_with_the_epochs() -> None:
    made, seen = network(), []
    engine = Engine(lambda engine, batch: seen.append(list(made.size)))
    ProgressiveResizing(made, {"1": (2, 4, 4), "3": (4, 8, 8)}).attach(engine)
    engine.run([0], max_epochs=4)
    assert seen == [[2, 4, 4]] * 2 + [[4, 8, 8]] * 2
    with pytest.raises(ValueError, match="sizes begin with epoch 2"):
        ProgressiveResizing(made, {2: (2, 4, 4)})


def test_a_scan_says_what_its_most_suspicious_place_says() -> None:
    made, scan = network(pooling="max"), torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    output = made(scan, return_dict=True)
    torch.testing.assert_close(output["logits"], output["detection_logits"].flatten(2).amax(dim=2))
    torch.testing.assert_close(output["heatmap"], output["detection_logits"].sigmoid())
    with pytest.raises(ValueError, match="pooling must be"):
        network(pooling="min")
    with pytest.raises(ValueError, match="must be of floating type"):
        made(scan.to(torch.uint8))
