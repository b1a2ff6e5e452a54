"""R2T against its equations: regions cut by hand from the square, tile by tile."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_mil.networks import R2T
from monai_mil.networks.r2t import _SelfAttention, region_places


def reference_attention(attend: _SelfAttention, rows: Tensor) -> Tensor:
    """Attention of rows ``[p, i]`` to each other, head by head."""
    width = rows.shape[1] // attend.heads
    query, key, value = attend.project(rows).chunk(3, dim=1)
    found = []
    for head in range(attend.heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        if attend.positions is not None:
            kernel, bias = attend.positions.weight[head, 0, :, 0], attend.positions.bias[head]
            around = F.pad(scores, (0, 0, len(kernel) // 2, len(kernel) // 2))
            shifted = [around[tap : tap + len(scores)] for tap in range(len(kernel))]
            scores = scores + sum(weight * each for weight, each in zip(kernel, shifted, strict=True)) + bias
        found.append(torch.softmax(scores, dim=1) @ value[:, part])
    return attend.output(torch.cat(found, dim=1))


def regions_of(rows: Tensor, regions: int) -> dict[tuple[int, int], list[int]]:
    """The places of the filled square in every region, row by row."""
    side = math.ceil(math.ceil(math.sqrt(len(rows))) / regions) * regions
    step = side // regions
    places: dict[tuple[int, int], list[int]] = {}
    for row in range(side):
        for column in range(side):
            places.setdefault((row // step, column // step), []).append(row * side + column)
    return places


def reference(network: R2T, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The re-embedded tiles and their attention."""
    embedded = first = torch.relu(network.hidden(rows))
    places = regions_of(rows, network.regions)
    count = sum(map(len, places.values()))

    def filled(normed: Tensor) -> Tensor:
        return torch.cat([normed, normed.new_zeros(count - len(normed), normed.shape[1])])

    for layer in network.regional:
        square, added = filled(layer.norm(embedded)), torch.zeros(count, embedded.shape[1], dtype=rows.dtype)
        for inside in places.values():
            added[inside] = reference_attention(layer.attend, square[inside])
        embedded = embedded + added[: len(rows)]
    square, added = filled(network.across.norm(embedded)), torch.zeros(count, embedded.shape[1], dtype=rows.dtype)
    for k in range(network.across.phi.shape[1]):
        gathered = []
        for inside in places.values():
            evidence = square[inside] @ network.across.phi[:, k]
            gathered.append(torch.softmax(evidence, dim=0) @ square[inside])
        answers = reference_attention(network.across.attend, torch.stack(gathered))
        for answer, inside in zip(answers, places.values(), strict=True):
            evidence = square[inside] @ network.across.phi
            own = evidence[:, k]
            share = torch.softmax(evidence, dim=1)[:, k] * (own - own.min()) / (own.max() - own.min() + 1e-8)
            added[inside] += share[:, None] * answer
    embedded = embedded + added[: len(rows)]
    embedded = network.norm(embedded + first if network.shortcut else embedded)
    return embedded, torch.softmax(network.score(torch.relu(network.gates(embedded)))[:, 0], dim=0)


@pytest.mark.parametrize(("n", "shortcut", "layers"), [(1, False, 1), (4, False, 1), (50, True, 2), (64, False, 1)])
def test_it_is_what_the_equations_say(n: int, shortcut: bool, layers: int) -> None:
    torch.manual_seed(0)
    network = R2T(6, 3, 8, heads=2, layers=layers, regions=3, kernel=3, representatives=2, shortcut=shortcut)
    network = network.double().eval()
    rows = torch.randn(n, 6, dtype=torch.float64)
    output = network(rows.T[None], return_dict=True)
    embedded, attention = reference(network, rows)
    torch.testing.assert_close(output["attention"][0, 0], attention)
    torch.testing.assert_close(output["bag"][0], attention @ embedded)
    torch.testing.assert_close(output["logits"][0], network.classifier(attention @ embedded))


def test_every_tile_has_its_place_in_its_region() -> None:
    taken, filled, place = region_places(torch.zeros(1, 7, 2), 2)
    assert taken.tolist() == [[0, 1, 4, 5], [2, 3, 6, 0], [1, 2, 5, 6], [3, 4, 0, 1]]
    assert filled.tolist() == [[False] * 4, [False] * 3 + [True], [True] * 4, [True] * 4]
    assert taken.flatten()[place].tolist() == list(range(7))
    assert not filled.flatten()[place].any()


def test_an_anchor_s_copy_makes_the_same_scores() -> None:
    network = R2T(6, 2, 8, heads=2, regions=2).eval()
    image, mask = torch.randn(2, 6, 9), torch.arange(9) < torch.tensor([[9], [4]])
    for given in (None, mask):
        output = network(image, given, return_dict=True)
        copy = network.anchor_copy()
        torch.testing.assert_close(copy.attention_scores(image, given, output), output["attention_logits"])


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide hidden_dim 8"):
        R2T(6, 2, 8, heads=3)
    with pytest.raises(ValueError, match="kernel 4: give an odd number"):
        R2T(6, 2, 8, kernel=4)
