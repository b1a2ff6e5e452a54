"""TransMIL: the reference's numbers, gradients, the square of tiles, what is not a tile."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_mil.networks import TransMIL, transmil
from monai_mil.networks.blocks import nystrom
from monai_mil.networks.transmil import REFERENCE_NAMES, SquarePositions, square_side
from tests.conftest import shared

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(shared("golden/transmil_50.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def network_of(golden: dict[str, Tensor]) -> TransMIL:
    state = {name.removeprefix("weight."): value for name, value in golden.items() if name.startswith("weight.")}
    return TransMIL.from_reference(state).eval()


@pytest.mark.parametrize("n", [1, 2, 5, 10, 50, 99])
def test_a_bag_too_long_to_be_held_gives_the_same(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(n)
    network = TransMIL(12, 3, hidden_dim=16, heads=2).eval().double()
    image = torch.randn(2, 12, n, dtype=torch.double)
    mask = torch.arange(n) < torch.tensor([[n], [max(1, n - 3)]])
    with torch.no_grad():
        expected = network(image, mask, return_dict=True)
        scores = network.attention_scores(image, mask, expected)
        for module, name, value in (
            (transmil, "LONG_BAG", {"cpu": 0}),
            (transmil, "STEP_TOKENS", 7),
            (nystrom, "CHUNK_TOKENS", 5),
        ):
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(network, "_held", None)
        found = network(image, mask, return_dict=True)
        torch.testing.assert_close(network.attention_scores(image, mask, expected), scores)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_the_reference_s_answers_on_50_and_400_tiles(golden: dict[str, Tensor]) -> None:
    network = network_of(golden)
    torch.testing.assert_close(network(golden["input"].mT), golden["out.logits"], **CLOSE)
    with np.load(shared("golden/transmil_400_same_weights.npz")) as file:
        image, expected = (torch.from_numpy(file[key]).float() for key in ("input", "out.logits"))
    torch.testing.assert_close(network(image.mT), expected, **CLOSE)


def test_the_reference_s_gradients_but_for_the_one_it_has_wrong(golden: dict[str, Tensor]) -> None:
    network = network_of(golden)
    loss = F.cross_entropy(network(golden["input"].mT), golden["label"])
    torch.testing.assert_close(loss, golden["loss.cross_entropy"], **CLOSE)
    loss.backward()
    parameters, compared = dict(network.named_parameters()), 0
    for name, expected in golden.items():
        # 50 tiles are 256 tokens, where the reference's float32 gradient of its convolution is wrong on CPUs.
        if not name.startswith("grad.") or "res_conv" in name:
            continue
        name = name.removeprefix("grad.")
        for theirs, ours in REFERENCE_NAMES.items():
            name = re.sub(rf"^{theirs}", ours, name)
        torch.testing.assert_close(
            parameters[name].grad, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )
        compared += 1
    assert compared == sum(name.startswith("grad.") and "res_conv" not in name for name in golden)


def test_float32_gradients_are_those_of_float64(golden: dict[str, Tensor]) -> None:
    network = network_of(golden)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        network.to(dtype).zero_grad()
        F.cross_entropy(network(golden["input"].mT.to(dtype)), golden["label"]).backward()
        gradients.append({name: parameter.grad.double() for name, parameter in network.named_parameters()})
    for name, exact in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], exact, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_it_has_as_many_parameters_as_the_reference(golden: dict[str, Tensor]) -> None:
    expected = sum(value.numel() for name, value in golden.items() if name.startswith("weight."))
    assert sum(parameter.numel() for parameter in network_of(golden).parameters()) == expected


@pytest.mark.parametrize("side", [1, 2, 3, 16, 31])
def test_one_kernel_does_the_work_of_three(side: int) -> None:
    positions = SquarePositions(6)
    tiles = torch.randn(2, side * side, 6)
    square = tiles.mT.unflatten(2, (side, side))
    apart = square + positions.three(square) + positions.five(square) + positions.seven(square)
    torch.testing.assert_close(positions(tiles, side), apart.flatten(2).mT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [4, 15, 16, 31])
def test_float32_gradients_of_the_positions_are_right(side: int) -> None:
    torch.manual_seed(0)
    positions, tiles, weight = SquarePositions(8), torch.randn(1, side * side, 8), torch.randn(1, side * side, 8)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        positions.to(dtype).zero_grad()
        (positions(tiles.to(dtype), side) * weight.to(dtype)).sum().backward()
        gradients.append([parameter.grad.double() for parameter in positions.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_sides_of_squares() -> None:
    assert [square_side(count) for count in (1, 2, 4, 5, 9, 10, 10**6, 10**6 + 1)] == [1, 2, 2, 3, 3, 4, 1000, 1001]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30])
def test_attention_is_the_token_s_to_the_tiles_alone(n: int) -> None:
    network = TransMIL(6, 3, hidden_dim=16, heads=2).eval()
    image = torch.randn(1, 6, n)
    output = network(image, return_dict=True)
    seen: list[Tensor] = []
    network.norm_layer2.register_forward_hook(lambda _, __, normed: seen.append(normed))
    network(image)
    query, key, _ = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in network.layer2.project(seen[0]).chunk(3, 2))
    exact = (query[:, :, :1] @ key.mT).squeeze(2) / 8**0.5
    torch.testing.assert_close(output["attention_logits"], exact[:, :, 1 : n + 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output["attention"].sum(2), torch.ones(1, 2))


def test_real_tiles_may_lie_anywhere_in_a_padded_bag() -> None:
    network = TransMIL(6, 3, hidden_dim=16, heads=2).eval()
    image, mask = torch.randn(2, 6, 12), torch.rand(2, 12) < 0.6
    mask[:, 3] = True
    output = network(image, mask, return_dict=True)
    for index in range(2):
        alone = network(image[index : index + 1, :, mask[index]], return_dict=True)
        torch.testing.assert_close(output["logits"][index], alone["logits"][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output["attention"][index][:, mask[index]], alone["attention"][0])
        assert (output["attention_logits"][index][:, ~mask[index]] == -torch.inf).all()


def test_another_method_s_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not this network's state dict"):
        TransMIL.from_reference({"fc.weight": torch.zeros(2, 2)})
