"""Patch-GCN against its equations, written out tile by tile and neighbour by neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks import PatchGCN
from monai_mil.networks.patch_gcn import _GraphConvolution


def network(**options: int) -> PatchGCN:
    torch.manual_seed(0)
    made = PatchGCN(6, 3, hidden_dim=4, **options).double().eval()
    for layer in made.layers:
        layer.convolution.temperature.data.fill_(1.7)
    return made


def slide(n: int) -> Tensor:
    """Features and places of tiles scattered over a grid, ``[1, 8, n]``."""
    places = torch.randperm(36)[:n]
    return torch.cat([torch.randn(6, n), torch.stack([places % 6, places // 6]).float()]).double()[None]


def reference_convolution(convolution: _GraphConvolution, rows: Tensor, neighbours: list[list[int]]) -> Tensor:
    found = []
    for own, near in zip(rows, neighbours, strict=True):
        taken = torch.zeros_like(own)
        for channel in range(len(own)):
            messages = torch.stack([torch.relu(rows[j, channel]) + 1e-7 for j in near]) if near else own.new_zeros(0)
            taken[channel] = (torch.softmax(convolution.temperature * messages, dim=0) * messages).sum()
        found.append(convolution.narrow(torch.relu(convolution.norm(convolution.widen(own + taken)))))
    return torch.stack(found)


def test_it_is_what_the_equations_say() -> None:
    for n in (1, 2, 14):
        made, image = network(neighbours=4), slide(n)
        places = image[0, 6:].T
        near = [
            sorted(
                (j for j in range(n) if j != i),
                key=lambda j: ((places[j] - places[i]).square().sum().item(), *(places[j] - places[i]).tolist()),
            )[:4]
            for i in range(n)
        ]
        rows = torch.relu(made.hidden(image[0, :6].T))
        found = [rows]
        for number, layer in enumerate(made.layers):
            taken = reference_convolution(layer.convolution, rows, near)
            rows = rows + torch.relu(layer.norm(taken)) if number else taken
            found.append(rows)
        merged = torch.relu(made.merge(torch.cat(found, dim=1)))
        tanh, sigmoid = made.gates(merged).chunk(2, dim=1)
        attention = torch.softmax(made.score(torch.tanh(tanh) * torch.sigmoid(sigmoid))[:, 0], dim=0)
        bag = torch.relu(made.rho(attention @ merged))
        output = made(image, return_dict=True)
        torch.testing.assert_close(output["attention"][0, 0], attention)
        torch.testing.assert_close(output["bag"][0], bag)
        torch.testing.assert_close(output["logits"][0], made.classifier(bag))


def test_the_order_of_the_tiles_does_not_matter_and_their_places_do() -> None:
    made, image, order = network(), slide(20), torch.randperm(20)
    output, moved = (made(each, return_dict=True) for each in (image, image[:, :, order]))
    torch.testing.assert_close(moved["logits"], output["logits"])
    torch.testing.assert_close(moved["attention"], output["attention"][:, :, order])
    elsewhere = torch.cat([image[:, :6], image[:, 6:, order]], dim=1)
    assert not torch.allclose(made(elsewhere), output["logits"])
    far = image + torch.tensor([0.0] * 6 + [300, 200])[None, :, None]
    torch.testing.assert_close(made(far), output["logits"])


def test_an_anchor_s_copy_makes_the_same_scores() -> None:
    made, image = network(), torch.cat([slide(9), slide(9)])
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    output = made(image, mask, return_dict=True)
    torch.testing.assert_close(made.anchor_copy().attention_scores(image, mask, output), output["attention_logits"])
