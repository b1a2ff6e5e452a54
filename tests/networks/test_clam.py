"""CLAM: the reference's numbers with its instance branch, which instances the branch sees, its checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_mil.losses import BagCrossEntropy, InstanceSmoothSVM, MILLoss
from monai_mil.networks import ABMIL, CLAM_MB, CLAM_SB, instance_scores
from monai_mil.networks.blocks.instance_branch import most_and_least_attended
from tests.conftest import shared

CLOSE = {"rtol": 0, "atol": 1e-5}
INF = float("inf")


@pytest.fixture(params=[("clam_sb", CLAM_SB, False), ("clam_mb", CLAM_MB, True)], ids=["sb", "mb"])
def case(request: pytest.FixtureRequest) -> tuple[CLAM_SB, dict[str, Tensor], bool]:
    """The network with the file's parameters, the file, and whether its classes exclude each other."""
    name, network_class, exclusive = request.param
    with np.load(shared(f"golden/{name}.npz")) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file}
    state = {key.removeprefix("weight."): value for key, value in golden.items() if key.startswith("weight.")}
    return network_class.from_reference(state, dropout=0.0), golden, exclusive


def test_the_reference_s_answer_losses_and_gradients_are_reproduced(
    case: tuple[CLAM_SB, dict[str, Tensor], bool],
) -> None:
    network, golden, exclusive = case
    output = network(golden["input"].float().T[None], return_dict=True)
    torch.testing.assert_close(output["logits"], golden["out.logits"], **CLOSE)
    torch.testing.assert_close(output["attention_logits"][0], golden["out.attention_scores"], **CLOSE)
    terms = {"bag": BagCrossEntropy(), "instance": InstanceSmoothSVM(exclusive)}
    loss = MILLoss(terms, {"bag": 0.7, "instance": 0.3})
    total = loss(output, golden["label"])
    torch.testing.assert_close(loss.last["bag"], golden["loss.cross_entropy"], **CLOSE)
    torch.testing.assert_close(loss.last["instance"], golden["loss.instance_smooth_svm"], **CLOSE)
    torch.testing.assert_close(total, golden["loss.total_0.7_0.3"], **CLOSE)
    total.backward()
    for ours, theirs in gradients(network, golden):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def gradients(network: CLAM_SB, golden: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Ours beside the file's, every one that the file holds."""
    attention = {"a": slice(0, 256), "b": slice(256, 512)}
    pairs = []
    for name, expected in golden.items():
        match name.split("."):
            case ["grad", "attention_net", "0", kind]:
                layer, rows = network.hidden, slice(None)
            case ["grad", "attention_net", "3", "attention_c", kind]:
                layer, rows = network.score, slice(None)
            case ["grad", "attention_net", "3", branch, "0", kind]:
                layer, rows = network.gates, attention[branch[-1]]
            case ["grad", "classifiers", kind]:
                layer, rows = network.classifier, slice(None)
            case ["grad", "classifiers", index, kind]:
                layer, rows = network.classifier, slice(int(index), int(index) + 1)
            case ["grad", "instance_classifiers", index, kind]:
                layer, rows = network.branch.classifiers, slice(2 * int(index), 2 * int(index) + 2)
            case _:
                continue
        pairs.append((getattr(layer, kind).grad[rows], expected))
    assert len(pairs) == sum(name.startswith("grad.") for name in golden)
    return pairs


def test_single_branch_without_instance_loss_is_abmil() -> None:
    source = ABMIL(6, 3)
    network = CLAM_SB(6, 3, sampled=0)
    network.load_state_dict(source.state_dict())
    image = torch.randn(2, 6, 9)
    output = network.eval()(image, return_dict=True)
    assert output.keys() == source(image, return_dict=True).keys()
    torch.testing.assert_close(output["logits"], source(image), rtol=0, atol=0)


def test_top_and_bottom_are_the_attention_s_extremes_and_never_the_same() -> None:
    scores = torch.tensor([[[0.1, 5.0, -3.0, 2.0, 9.0, 9.0]]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    top, top_real, bottom, bottom_real = most_and_least_attended(scores, mask, 8)
    assert top[0, 0, :2].tolist() == [4, 1]
    assert bottom[0, 0, :2].tolist() == [2, 0]
    assert top_real[0, 0].tolist() == bottom_real[0, 0].tolist() == [True] * 2 + [False] * 6
    assert top.max() < 6


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 40])
def test_small_bags_give_half_to_each_side(n: int) -> None:
    top, top_real, bottom, bottom_real = most_and_least_attended(torch.randn(1, 2, n), None, 8)
    assert top_real.sum() == min(8, max(1, n // 2))
    assert bottom_real.sum() == min(8, n // 2)
    for head in range(2):
        assert not set(top[0, head][top_real[0, 0]].tolist()) & set(bottom[0, head][bottom_real[0, 0]].tolist())


@pytest.mark.parametrize("network_class", [CLAM_SB, CLAM_MB])
def test_padding_changes_nothing_the_branch_sees(network_class: type[CLAM_SB]) -> None:
    network = network_class(6, 3, hidden_dim=8, attention_dim=4).eval()
    image = torch.randn(2, 6, 14)
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[1, 5:] = False
    image[1, :, 5:] = 1e3
    output = network(image, mask, return_dict=True)
    for key in ("top_instance_logits", "bottom_instance_logits"):
        torch.testing.assert_close(output[key][:1], network(image[:1], return_dict=True)[key])
        torch.testing.assert_close(output[key][1:], network(image[1:, :, :5], return_dict=True)[key])
        assert (output[key][1, :, 2:] == -INF).all()


def test_every_class_of_multiple_branches_looks_at_its_own_instances() -> None:
    network = CLAM_MB(6, 3, hidden_dim=8, attention_dim=4, sampled=2).eval()
    image = torch.randn(1, 6, 30)
    output = network(image, return_dict=True)
    hidden = torch.relu(network.hidden(image[0].T))
    for c in range(3):
        top = output["attention"][0, c].topk(2).indices
        two = torch.nn.functional.linear(
            hidden[top],
            network.branch.classifiers.weight[2 * c : 2 * c + 2],
            network.branch.classifiers.bias[2 * c : 2 * c + 2],
        )
        torch.testing.assert_close(output["top_instance_logits"][0, c], two[:, 1] - two[:, 0])
    torch.testing.assert_close(instance_scores(output), output["attention"])


@pytest.mark.parametrize("network_class", [CLAM_SB, CLAM_MB])
def test_the_branch_teaches_the_hidden_layer_but_not_the_attention(network_class: type[CLAM_SB]) -> None:
    network = network_class(6, 3)
    output = network(torch.randn(1, 6, 30), return_dict=True)
    InstanceSmoothSVM()(output, torch.tensor([1])).backward()
    assert network.hidden.weight.grad.abs().sum() > 0
    assert network.score.weight.grad is None or not network.score.weight.grad.any()


@pytest.mark.parametrize("network_class", [CLAM_SB, CLAM_MB])
def test_a_bag_from_elsewhere_has_the_same_answer(network_class: type[CLAM_SB]) -> None:
    network = network_class(6, 3, hidden_dim=8, attention_dim=4).eval()
    rows = torch.randn(5000, 6)
    output = network.pool_chunks(rows.split(777))
    whole = network(rows.T[None], return_dict=True)
    for key, value in output.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-6)


def test_another_kind_s_checkpoint_is_refused(case: tuple[CLAM_SB, dict[str, Tensor], bool]) -> None:
    _, golden, exclusive = case
    state = {key.removeprefix("weight."): value for key, value in golden.items() if key.startswith("weight.")}
    other, here = (CLAM_SB, CLAM_MB) if exclusive else (CLAM_MB, CLAM_SB)
    with pytest.raises(ValueError, match="not this network's state dict"):
        other.from_reference(state)
    with pytest.raises(ValueError, match="not this network's state dict"):
        here.from_reference({key: value for key, value in state.items() if "instance" not in key})
    assert here.from_reference(state, sampled=0).branch is None


def test_a_negative_number_of_instances_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot see -1"):
        CLAM_SB(4, 2, sampled=-1)
