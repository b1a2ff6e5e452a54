"""Grad-CAM against plain autograd over the whole bag."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_mil.networks import ABMIL, CLAM_MB, CLAM_SB, DSMIL, INSIGHT, SliceABMIL, TransMIL, grad_cam


def insight(chunk=32):
    torch.manual_seed(0)
    return INSIGHT(12, 3, grid=(3, 4), reduced=8, widths=(8, 6, 6), chunk_instances=chunk).double().eval()


def tokens(n=9, b=1, seed=1):
    return torch.randn(b, 12, n, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(network, image, mask=None):
    """All tiles of one bag in one graph, class by class; written from the formula."""
    tiles = image[0].transpose(0, 1)
    activation = network.tiles.projection(tiles).detach().requires_grad_()
    detection = network.tiles.detection_score(network.tiles.detection(activation))
    context = network.tiles.context_score(network.tiles.context(activation))
    heatmap = (torch.sigmoid(detection) * torch.sigmoid(-context)).transpose(0, 1)[None]
    answer = network._answer(heatmap, detection.transpose(0, 1)[None], mask)["prob"]
    cams = []
    for value in answer[0]:
        gradient = torch.autograd.grad(value, activation, retain_graph=True)[0]
        weight = gradient.mean(dim=(0, 2, 3), keepdim=True)
        cam = (weight * activation).sum(dim=1).relu().detach()
        if mask is not None:
            cam = cam * mask[0]
        cams.append(cam / cam.max() if cam.max() > 0 else cam)
    return torch.stack(cams)


@pytest.mark.parametrize("chunk", [1, 7, 9])
def test_insight_in_chunks_equals_one_piece(chunk):
    network, image = insight(chunk), tokens()
    cam = grad_cam(network, image)
    assert cam.shape == (1, 3, 9, 3, 4)
    torch.testing.assert_close(cam[0], reference(network, image), rtol=0, atol=1e-10)
    assert cam.amax() == 1
    assert not cam.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_padding_changes_no_map_and_has_none():
    network, image = insight(4), tokens(b=2)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    image[1, :, 5:] = 1e3
    cam = grad_cam(network, image, mask)
    torch.testing.assert_close(cam[0], reference(network, image[:1]), rtol=0, atol=1e-10)
    torch.testing.assert_close(cam[1, :, :5], reference(network, image[1:, :, :5]), rtol=0, atol=1e-10)
    assert not cam[1, :, 5:].any()


def test_masked_tokens_have_no_map():
    network, image = insight(4), tokens()
    mask = torch.rand(1, 9, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    cam = grad_cam(network, image, mask)
    torch.testing.assert_close(cam[0], reference(network, image, mask), rtol=0, atol=1e-10)
    assert not cam[~mask[:, None].expand_as(cam)].any()


def test_codes_give_the_map_of_their_features():
    network, codes = insight(4), torch.randint(0, 256, (1, 12, 9, 3, 4), dtype=torch.uint8)
    scale, offset = torch.rand(2, 1, 12).double() * 0.02
    features = offset[..., None, None, None] + scale[..., None, None, None] * codes
    coded = grad_cam(network, codes, scale=scale, offset=offset)
    torch.testing.assert_close(coded, grad_cam(network, features), rtol=0, atol=1e-10)


def test_any_layer_of_insight_may_be_named_and_frozen_networks_have_maps():
    network, image = insight(4).requires_grad_(False), tokens()
    torch.testing.assert_close(grad_cam(network, image)[0], reference(network, image), rtol=0, atol=1e-10)
    with torch.no_grad():
        assert grad_cam(network, image, layer="tiles.context.1").shape == (1, 3, 9, 3, 4)


def rows(n=11, b=1):
    return torch.randn(b, 6, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("cls", [ABMIL, CLAM_SB, CLAM_MB])
def test_attention_networks_look_at_their_rectified_rows(cls):
    torch.manual_seed(0)
    network = cls(6, 2, hidden_dim=8, attention_dim=4).double().eval()
    image = rows()
    hidden = torch.relu(network.hidden(image[0].T)).detach().requires_grad_()
    gates = network.gates(hidden)
    scores = network.score(torch.tanh(gates[:, :4]) * torch.sigmoid(gates[:, 4:])).T
    answer = network._answer((scores.softmax(1) @ hidden)[None], scores[None])["logits"]
    torch.testing.assert_close(answer, network(image))
    cam = grad_cam(network, image)
    assert cam.shape == (1, 2, 11)
    for index in range(2):
        gradient = torch.autograd.grad(answer[0, index], hidden, retain_graph=True)[0]
        expected = (hidden @ gradient.mean(dim=0)).relu().detach()
        torch.testing.assert_close(cam[0, index], expected / expected.max().clamp(min=1e-300), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "network",
    [DSMIL(6, 2), SliceABMIL(6, 2), TransMIL(6, 2, hidden_dim=16, heads=2), CLAM_MB(6, 2, hidden_dim=8)],
    ids=lambda network: type(network).__name__,
)
def test_every_network_has_a_map_of_the_features_it_is_given(network):
    network = network.double().eval()
    image, mask = rows(b=2), torch.arange(11) < torch.tensor([[11], [4]])
    cam = grad_cam(network, image, mask, layer="input")
    for index, count in enumerate((11, 4)):
        bag = image[index : index + 1, :, :count].clone().requires_grad_()
        for c, value in enumerate(network(bag)[0]):
            weight = torch.autograd.grad(value, bag, retain_graph=True)[0][0].mean(dim=1)
            expected = (weight @ bag[0]).relu().detach()
            torch.testing.assert_close(
                cam[index, c, :count], expected / expected.max().clamp(min=1e-300), rtol=0, atol=1e-9
            )
        assert not cam[index, :, count:].any()


def test_a_padded_batch_of_rows_has_the_maps_of_its_bags():
    torch.manual_seed(0)
    network = ABMIL(6, 2, hidden_dim=8, attention_dim=4).double().eval()
    image, mask = rows(b=2), torch.arange(11) < torch.tensor([[11], [4]])
    cam = grad_cam(network, image, mask)
    torch.testing.assert_close(cam[1:, :, :4], grad_cam(network, image[1:, :, :4]))
    assert not cam[1, :, 4:].any()


def test_other_networks_need_a_layer_with_a_row_for_every_instance():
    network = TransMIL(6, 2, hidden_dim=16, heads=2).double().eval()
    assert grad_cam(network, rows(), layer="hidden").shape == (1, 2, 11)
    with pytest.raises(ValueError, match="name the layer of TransMIL"):
        grad_cam(network, rows())
    with pytest.raises(ValueError, match=r"'norm' gives \[1, 16\]"):
        grad_cam(network, rows(), layer="norm")
    with pytest.raises(ValueError, match=r"has no layer 'projection'; it has tiles, tiles\.projection"):
        grad_cam(insight(), tokens(), layer="projection")


def test_a_map_without_evidence_is_zero():
    network = insight()
    for parameter in network.tiles.detection_score.parameters():
        torch.nn.init.zeros_(parameter)
    for parameter in network.tiles.context_score.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.warns(UserWarning, match="the same everywhere"):
        cam = grad_cam(network, tokens())
    assert not cam.any()
    assert np.isfinite(cam.numpy()).all()
