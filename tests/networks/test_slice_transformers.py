"""Transformers over slices: exact shortcuts, honest attention, no matrix of all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.networks import SmoothTransformer1D, TransMIL1D, instance_scores
from monai_mil.networks.blocks.smooth import SmoothOperator

CLASSES = pytest.mark.parametrize("network_class", [TransMIL1D, SmoothTransformer1D])


def plain(network: TransMIL1D | SmoothTransformer1D, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the class token's attention to the slices ``[b, h, n]``, every row of every layer computed."""

    def layer(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        block = getattr(network, f"layer{number}")
        normed = block.norm(rows).transpose(0, 1)
        mixed, attention = block.attention(normed, normed, normed, average_attn_weights=False)
        mixed = mixed.transpose(0, 1)
        smooth: SmoothOperator | None = getattr(network, f"smooth{number}", None)
        return rows + (mixed if smooth is None else smooth(mixed.mT).mT), attention

    rows = torch.cat([network.token.expand(len(image), 1, -1), image.mT], dim=1)
    rows, _ = layer(rows, 1)
    slices = rows[:, 1:].mT
    convolutions = (network.positions.three, network.positions.five, network.positions.seven)
    around = sum(
        torch.nn.functional.conv1d(slices, c.weight, c.bias, padding=c.kernel_size[0] // 2, groups=c.groups)
        for c in convolutions
    )
    rows, attention = layer(torch.cat([rows[:, :1], (slices + around).mT], dim=1), 2)
    return network.classifier(rows[:, 0]), attention[:, :, 0, 1:]


@pytest.mark.parametrize(
    "network",
    [
        TransMIL1D(16, 2, heads=4),
        SmoothTransformer1D(16, 2, heads=4),
        SmoothTransformer1D(16, 2, heads=4, neighbours=3, steps=2),
        SmoothTransformer1D(16, 2, heads=4, exact=True),
    ],
    ids=["TransMIL1D", "steps", "neighbours", "exact"],
)
@pytest.mark.parametrize("n", [1, 3, 9, 10, 11, 60])
def test_shortcuts_change_neither_answer_nor_gradient(network: TransMIL1D | SmoothTransformer1D, n: int) -> None:
    network = network.double()
    image = torch.randn(2, 16, n, dtype=torch.double, requires_grad=True)
    sources = [image, *network.parameters()]
    output = network(image, return_dict=True)
    logits, share = plain(network, image)
    torch.testing.assert_close(output["logits"], logits)
    torch.testing.assert_close(output["attention_share"], share)
    weight = torch.randn_like(share)
    found, expected = (
        torch.autograd.grad(answer.square().sum() + (weight * attention).sum(), sources)
        for answer, attention in ((output["logits"], output["attention_share"]), (logits, share))
    )
    torch.testing.assert_close(found, expected)


@CLASSES
def test_shares_attention_and_logits_belong_together(network_class: type[TransMIL1D]) -> None:
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    output = network_class(16, 2, heads=4)(torch.randn(2, 16, 9), mask, return_dict=True)
    share = output["attention_share"]
    assert (share.sum(2) < 1).all(), "the class token takes a part"
    torch.testing.assert_close(output["attention_logits"].exp(), share)
    torch.testing.assert_close(output["attention_logits"].softmax(2), output["attention"])
    torch.testing.assert_close(share / share.sum(2, keepdim=True), output["attention"])
    assert (output["attention_logits"][1, :, 4:] == -torch.inf).all()
    torch.testing.assert_close(instance_scores(output)[:, 0], output["attention"].mean(1))


@CLASSES
def test_padded_scans_train_like_scans_one_by_one(network_class: type[TransMIL1D]) -> None:
    network = network_class(16, 1, heads=4).double()
    image = torch.randn(2, 16, 30, dtype=torch.double)
    mask = torch.arange(30) < torch.tensor([[30], [5]])
    network(image, mask).square().sum().backward()
    together = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    (network(image[:1]).square().sum() + network(image[1:, :, :5]).square().sum()).backward()
    torch.testing.assert_close(together, [parameter.grad for parameter in network.parameters()])


@CLASSES
def test_training_on_a_long_scan_keeps_no_matrix_of_all_pairs(network_class: type[TransMIL1D]) -> None:
    n, saved = 1727, []
    network = network_class(64, 1)
    image = torch.randn(1, n, 64).mT
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        network(image).sum().backward()
    assert max(saved) <= 4 * 3 * 64 * (n + 8), "the projections are the largest"


@CLASSES
def test_slice_order_matters_to_a_transformer(network_class: type[TransMIL1D]) -> None:
    network = network_class(16, 1, heads=4).eval()
    image = torch.randn(1, 16, 12)
    assert (network(image) - network(image.flip(2))).abs().max() > 1e-4


@CLASSES
def test_bfloat16_training_follows_float32(network_class: type[TransMIL1D]) -> None:
    torch.manual_seed(0)
    network = network_class(64, 2)
    image = torch.randn(1, 64, 200)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = network(image)
        assert logits.dtype == torch.float32
        logits.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@CLASSES
def test_heads_that_do_not_divide_the_width_are_refused(network_class: type[TransMIL1D]) -> None:
    with pytest.raises(ValueError, match="heads must divide"):
        network_class(10, 1, heads=4)
