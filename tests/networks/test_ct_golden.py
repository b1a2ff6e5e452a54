"""The CT networks give the reference's numbers, scan by scan and as one padded batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_mil.networks import (
    FeatureMaxPooling,
    FeatureMeanPooling,
    MILNetwork,
    SliceABMIL,
    SliceClassifier,
    SmoothABMIL,
    SmoothTransformer1D,
    TransMIL1D,
)
from tests.conftest import shared

CLOSE = {"rtol": 0, "atol": 1e-5}
CASES = {
    "normal_guidance_abmil": (SliceABMIL, {}),
    "normal_guidance_transmil": (TransMIL1D, {"heads": 4}),
    "smooth_operator_early": (SmoothABMIL, {}),
    "smooth_operator_late": (SmoothABMIL, {}),
    "smooth_operator_transformer": (SmoothTransformer1D, {"heads": 4}),
}
RENAMED = {
    "hidden.": "mlp.0.",
    "score.": "mlp.2.",
    "token": "cls_token",
    "attention.": "attn.",
    "positions.three.": "pos_layer.proj1.conv.",
    "positions.five.": "pos_layer.proj2.conv.",
    "positions.seven.": "pos_layer.proj3.conv.",
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[MILNetwork, dict[str, Tensor]]:
    """The network with the file's parameters, and the file."""
    with np.load(shared(f"golden/{request.param}.npz")) as file:
        golden = {name: torch.from_numpy(file[name]) for name in file}
    state = {
        name.split(".", 1)[1]: value for name, value in golden.items() if name.split(".")[0] in ("weight", "state")
    }
    network_class, options = CASES[request.param]
    return network_class.from_reference(state, **options).eval(), golden


def scans(golden: dict[str, Tensor]) -> list[Tensor]:
    return list(golden["input"].float().split(golden["lengths"].tolist()))


def padded(bags: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch ``[b, d, n]`` whose padding is not 0, and its mask."""
    image = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True, padding_value=7.0).mT
    return image, torch.arange(image.shape[2]) < torch.tensor([len(bag) for bag in bags])[:, None]


def given(output: dict[str, Tensor]) -> Tensor:
    """Attention as the reference has it, ``[b, h, n]``: before it is brought to sum 1."""
    return output.get("attention_share", output["attention"])


def test_bag_vectors_and_attention_are_the_reference_s(case: tuple[MILNetwork, dict[str, Tensor]]) -> None:
    network, golden = case
    bags, shares = [], []
    for rows in scans(golden):
        output = network(rows.T[None], return_dict=True)
        bags.append(output["bag"])
        shares.append(given(output)[0].T)
    torch.testing.assert_close(torch.cat(bags), golden["out.bag"], **CLOSE)
    torch.testing.assert_close(torch.cat(shares), golden["out.attention"], **CLOSE)


def test_a_padded_batch_gives_the_same(case: tuple[MILNetwork, dict[str, Tensor]]) -> None:
    network, golden = case
    image, mask = padded(scans(golden))
    output = network(image, mask, return_dict=True)
    torch.testing.assert_close(output["bag"], golden["out.bag"], **CLOSE)
    torch.testing.assert_close(given(output).mT[mask], golden["out.attention"], **CLOSE)
    assert (given(output).mT[~mask] == 0).all()


@pytest.mark.parametrize("case", ["normal_guidance_abmil", "normal_guidance_transmil"], indirect=True)
def test_gradients_are_the_reference_s(case: tuple[MILNetwork, dict[str, Tensor]]) -> None:
    network, golden = case
    image, mask = padded(scans(golden))
    network(image, mask, return_dict=True)["bag"].square().sum().backward()  # the loss behind the stored gradients
    compared = 0
    for name, parameter in network.named_parameters():
        if name.startswith("classifier"):
            continue
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        expected = golden[f"grad.{name}"]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared == sum(name.startswith("grad.") for name in golden)


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (SliceABMIL(768, 1), 99_330),
        (TransMIL1D(768, 1), 4_743_169),
        (SmoothABMIL(768, 1), 99_331),
        (SmoothTransformer1D(768, 1), 4_742_402 + 769),
        (FeatureMeanPooling(768, 1), 769),
        (FeatureMaxPooling(768, 1), 769),
        (SliceClassifier(768, 1, kernel=12), 12 * 768 + 768 + 769),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MILNetwork) else "",
)
def test_they_have_as_many_parameters_as_the_reference(network: MILNetwork, count: int) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_a_whole_classifier_loads_with_its_prefixes() -> None:
    source = SliceABMIL(6, 2, attention_dim=4)
    names = {"hidden.": "pool.mlp.0.", "score.": "pool.mlp.2.", "classifier.": "clf."}
    state = {}
    for name, value in source.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value
    image = torch.randn(1, 6, 5)
    torch.testing.assert_close(SliceABMIL.from_reference(state)(image), source(image))


@pytest.mark.parametrize("network_class", [network_class for network_class, _ in CASES.values()])
def test_another_method_s_checkpoint_is_refused(network_class: type[MILNetwork]) -> None:
    with pytest.raises(ValueError, match="not this network's state dict"):
        network_class.from_reference({"fc.weight": torch.zeros(2, 2)})


def test_a_checkpoint_with_a_part_missing_is_refused() -> None:
    state = {"mlp.0.weight": torch.zeros(4, 6), "mlp.0.bias": torch.zeros(4), "mlp.2.weight": torch.zeros(1, 4)}
    with pytest.raises(ValueError, match=r"lacks \['score.bias'\]"):
        SliceABMIL.from_reference(state)
