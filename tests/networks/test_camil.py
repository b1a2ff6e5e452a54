"""CAMIL against its equations, tile by tile, and what it takes for neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.networks import CAMIL
from monai_mil.networks.blocks import neighbours


def network_of() -> CAMIL:
    torch.manual_seed(0)
    return CAMIL(5, 3, hidden_dim=8, attention_dim=4, neighbour_dim=6, heads=2, landmarks=4).eval()


def slide(n: int) -> Tensor:
    """``n`` tiles at places of a 5 by 5 grid, some of them without neighbours: ``[1, 7, n]``."""
    places = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")).flatten(1)
    chosen = torch.randperm(25, generator=torch.Generator().manual_seed(n))[:n]
    return torch.cat([torch.randn(5, n), places[:, chosen]])[None]


def naive(network: CAMIL, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and readout scores of one slide, as the equations stand."""
    features, places = image[0, :5].T, image[0, 5:].T
    hidden = network.hidden(features)
    tiles = hidden + network.context(hidden[None])[0]
    weight = []
    for i in range(len(features)):
        near = [j for j in range(len(features)) if j != i and (places[i] - places[j]).abs().max() <= 1]
        apart = torch.stack([(features[i] - features[j]).norm() for j in near]) if near else torch.zeros(0)
        like = torch.exp(-apart / apart.norm()) if near else apart
        asked = network.query(tiles[i]) / 6**0.5
        own = like.max() if near else torch.tensor(1.0)
        weight.append(own * (asked @ network.key(tiles[i])))
        for share, j in zip(like, near, strict=True):
            weight[-1] = weight[-1] + share * (asked @ network.key(tiles[j]))
    local = torch.stack(weight).softmax(dim=0)[:, None] * network.value(hidden)
    gate = local.sigmoid()
    merged = gate * local + (1 - gate) * tiles
    tanh, sigmoid = network.attention.gates(merged).chunk(2, dim=1)
    scores = network.attention.score(tanh.tanh() * sigmoid.sigmoid())[:, 0]
    return network.classifier(scores.softmax(dim=0) @ merged), scores


@pytest.mark.parametrize("n", [1, 2, 9, 25])
def test_tiles_are_weighed_by_their_neighbours_as_the_paper_says(n: int) -> None:
    network, image = network_of(), slide(n)
    output = network(image, return_dict=True)
    logits, scores = naive(network, image)
    torch.testing.assert_close(output["logits"][0], logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output["attention_logits"][0, 0], scores, rtol=0, atol=1e-5)


def test_neighbours_are_the_same_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = network_of(), slide(25)
    whole = network._neighbours(image[:, 5:].mT)
    monkeypatch.setattr(neighbours, "_PART", 4)
    assert all(torch.equal(*pair) for pair in zip(network._neighbours(image[:, 5:].mT), whole, strict=True))
    assert sorted(whole[1].sum(dim=2)[0].tolist()) == [3] * 4 + [5] * 12 + [8] * 9, "corners, edges, the inner tiles"


def test_neighbours_looked_up_in_the_grid_are_those_that_all_pairs_give() -> None:
    network = network_of()
    for n in (1, 5, 300):
        places = (torch.randn(2, n, 2) * 3).round()
        pairs = zip(network._look_up(places), network._search(places), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_of_many_tiles_at_one_place_the_nearest_eight_count() -> None:
    place, there = network_of()._neighbours(torch.tensor([[[0.0, 1.0]] + [[0.0, 0.0]] * 11]))
    assert place[0, 5].tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    assert there[0, 5].all()


def test_tiles_of_equal_features_are_wholly_alike() -> None:
    places = torch.tensor([[[0.0, 0], [0, 1]]])
    around = network_of()._around(torch.ones(1, 2, 5), places, torch.eye(2)[None])
    torch.testing.assert_close(around, torch.ones(1, 2, 2))


def test_a_bag_without_positions_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"5 features and 2 positions a tile, this one 5 channels.*PositionsAsFeaturesd"
    ):
        network_of()(torch.randn(1, 5, 9))
