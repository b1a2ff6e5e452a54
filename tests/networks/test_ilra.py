"""ILRA against its equations, written out tile by tile."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_mil.networks import ILRA
from monai_mil.networks.ilra import _AskingBlock


def reference_block(block: _AskingBlock, askers: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """One attention block for one bag: askers ``[m, p]``, rows ``[n, x]``; the result and attention ``[h, m, n]``."""
    query, width = block.query(askers), block.feed.in_features // block.heads
    one, other, value = block.head_query(query), block.head_key(block.key(rows)), block.head_value(block.value(rows))
    attention = []
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        attention.append(torch.softmax(one[:, part] @ other[:, part].T / math.sqrt(width), dim=1))
    parts = value.split(width, dim=1)
    read = torch.cat([share @ part for share, part in zip(attention, parts, strict=True)], dim=1)
    result = query + block.head_output(read)
    result = result if block.norm is None else block.norm(result)
    result = result + torch.relu(block.feed(result))
    result = result if block.feed_norm is None else block.feed_norm(result)
    if block.gate is not None:
        gate = block.gate(askers)
        result = result * gate * torch.sigmoid(gate)
    return result, torch.stack(attention)


@pytest.mark.parametrize("norm", [False, True])
def test_it_is_what_the_equations_say(norm: bool) -> None:
    torch.manual_seed(0)
    network = ILRA(6, 3, hidden_dim=8, heads=2, layers=2, rank=3, norm=norm).double()
    rows = torch.randn(9, 6, dtype=torch.float64)
    output = network(rows.T[None], return_dict=True)
    for layer in network.layers:
        latent = reference_block(layer.gather, layer.latent[0], rows)[0]
        rows = reference_block(layer.spread, rows, latent)[0]
    bag, attention = reference_block(network.pool, network.seed[0], rows)
    torch.testing.assert_close(output["logits"], network.classifier(bag))
    torch.testing.assert_close(output["attention"][0], attention[:, 0])
    torch.testing.assert_close(output["bag"], bag)


def test_the_heads_are_those_of_torch() -> None:
    torch.manual_seed(0)
    block = _AskingBlock(5, 6, 8, 2, norm=False, gated=False)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    heads = (block.head_query, block.head_key, block.head_value)
    theirs.in_proj_weight.data = torch.cat([layer.weight for layer in heads])
    theirs.in_proj_bias.data = torch.cat([layer.bias for layer in heads])
    theirs.out_proj.load_state_dict(block.head_output.state_dict())
    askers, rows = torch.randn(1, 4, 5), torch.randn(1, 7, 6)
    query = block.query(askers)
    expected = query + theirs(query, block.key(rows), block.value(rows))[0]
    torch.testing.assert_close(block(askers, rows, None), expected + torch.relu(block.feed(expected)))


def test_the_order_of_the_tiles_does_not_matter() -> None:
    network = ILRA(6, 2, hidden_dim=8, heads=2, rank=2).double()
    image, order = torch.randn(1, 6, 20, dtype=torch.float64), torch.randperm(20)
    output, moved = (network(each, return_dict=True) for each in (image, image[:, :, order]))
    torch.testing.assert_close(moved["logits"], output["logits"])
    torch.testing.assert_close(moved["attention"], output["attention"][:, :, order])


def test_an_anchor_s_copy_makes_the_same_scores() -> None:
    network = ILRA(6, 2, hidden_dim=8, heads=2)
    image, mask = torch.randn(2, 6, 9), torch.arange(9) < torch.tensor([[9], [4]])
    output = network(image, mask, return_dict=True)
    copy = network.anchor_copy()
    torch.testing.assert_close(copy.attention_scores(image, mask, output), output["attention_logits"])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide hidden_dim 8"):
        ILRA(6, 2, hidden_dim=8, heads=3)
