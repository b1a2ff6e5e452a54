"""What every network with attention gives an anchor: the modules that make the scores, and the same scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from monai_mil.networks import ABMIL, ASMIL, CLAM_MB, CLAM_SB, DSMIL, SliceABMIL, TransMIL
from monai_mil.networks.blocks.attention_network import AttentionNetwork

NETWORKS: dict[str, tuple[Callable[[], AttentionNetwork], set[str]]] = {
    "ABMIL": (lambda: ABMIL(6, 3, 16, 8, heads=2, dropout=0.5), {"hidden", "gates", "score"}),
    "ABMIL, plain": (lambda: ABMIL(6, 3, 16, 8, gated=False), {"hidden", "gates", "score"}),
    "CLAM_SB": (lambda: CLAM_SB(6, 3, 16, 8), {"hidden", "gates", "score"}),
    "CLAM_MB": (lambda: CLAM_MB(6, 3, 16, 8), {"hidden", "gates", "score"}),
    "SliceABMIL": (lambda: SliceABMIL(6, 3, 8), {"hidden", "score"}),
    "DSMIL": (lambda: DSMIL(6, 3, query_dim=8), {"query1", "query2"}),
    "TransMIL": (
        lambda: TransMIL(6, 3, hidden_dim=16, heads=2, dropout=0.5),
        {"hidden", "token", "norm_layer1", "layer1", "positions", "norm_layer2", "layer2.project"},
    ),
    "ASMIL": (
        lambda: ASMIL(6, 3, hidden_dim=16, token_logits=True),
        {"hidden", "attention.token", "attention.query", "attention.key"},
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> AttentionNetwork:
    torch.manual_seed(0)
    return NETWORKS[request.param][0]()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_copy_holds_what_makes_the_scores_and_nothing_else(name: str) -> None:
    make, parts = NETWORKS[name]
    network = make()
    copy = network.anchor_copy()
    expected = {key for key, _ in network.named_parameters() if any(key == p or key.startswith(f"{p}.") for p in parts)}
    assert copy.state_dict().keys() == expected
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())


@pytest.mark.parametrize("padded", [False, True])
def test_a_fresh_copy_makes_the_network_s_own_scores(network: AttentionNetwork, padded: bool) -> None:
    network.eval()
    image, mask = torch.randn(2, 6, 14), None
    if padded:
        mask = torch.rand(2, 14) < 0.6
        mask[:, 5] = True
        image = image.transpose(1, 2).masked_fill(~mask[:, :, None], torch.nan).transpose(1, 2)
    output = network(image, mask, return_dict=True)
    scores = network.anchor_copy().attention_scores(image, mask, output)
    torch.testing.assert_close(scores, output["attention_logits"].detach(), rtol=1e-5, atol=1e-6)


def test_the_copy_has_no_dropout_and_is_not_moved_by_training(network: AttentionNetwork) -> None:
    image = torch.randn(1, 6, 20)
    output = network(image, return_dict=True)
    copy = network.anchor_copy()
    before = copy.attention_scores(image, None, output)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.testing.assert_close(copy.attention_scores(image, None, output), before, rtol=0, atol=0)
    assert not before.requires_grad


def test_every_parameter_of_the_copy_matters_to_the_scores(network: AttentionNetwork) -> None:
    copy = network.anchor_copy()
    image = torch.randn(1, 6, 20)
    output = network.eval()(image, return_dict=True)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.copy_(torch.randn_like(parameter))
        before = copy.attention_scores(image, None, output)
        for name, parameter in copy.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            assert not torch.equal(copy.attention_scores(image, None, output), before), name
            parameter.copy_(kept)


def test_a_half_precision_network_s_copy_is_float32(network: AttentionNetwork) -> None:
    copy = network.bfloat16().anchor_copy()
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}


def test_dsmil_s_copy_is_asked_for_the_original_s_critical_instances() -> None:
    torch.manual_seed(0)
    network = DSMIL(6, 2, query_dim=8)
    image = torch.randn(1, 6, 30)
    output = network(image, return_dict=True)
    copy = network.anchor_copy()
    other = copy.attention_scores(image, None, {"critical": (output["critical"] + 1) % 30})
    assert not torch.allclose(other, output["attention_logits"])
    nn.init.zeros_(network.instances.weight)
    torch.testing.assert_close(copy.attention_scores(image, None, output), output["attention_logits"].detach())
