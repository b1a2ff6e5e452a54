"""ABMIL: the reference's numbers, exact gradients, little memory."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mil.networks import ABMIL, MeanPooling
from tests.conftest import shared


@pytest.fixture
def reference() -> dict[str, torch.Tensor]:
    with np.load(shared("golden/clam_sb.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def weights_of(reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("weight."): value for name, value in reference.items() if name.startswith("weight.")}


def test_clam_sb_s_logits_attention_and_gradients_are_reproduced(reference: dict[str, torch.Tensor]) -> None:
    network = ABMIL.from_reference(weights_of(reference))
    output = network(reference["input"].float().T[None], return_dict=True)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(output["logits"], reference["out.logits"], **close)
    torch.testing.assert_close(output["attention_logits"][0], reference["out.attention_scores"], **close)
    loss = torch.nn.functional.cross_entropy(output["logits"], reference["label"].long())
    torch.testing.assert_close(loss, reference["loss.cross_entropy"], **close)
    # The reference's gradients are of 0.7 cross-entropy + 0.3 instance loss; the latter never reaches these two layers.
    (0.7 * loss).backward()
    torch.testing.assert_close(network.classifier.weight.grad, reference["grad.classifiers.weight"], **close)
    torch.testing.assert_close(network.classifier.bias.grad, reference["grad.classifiers.bias"], **close)
    score = "grad.attention_net.3.attention_c."
    torch.testing.assert_close(network.score.weight.grad, reference[score + "weight"], **close)
    torch.testing.assert_close(network.score.bias.grad, reference[score + "bias"], **close)
    gates = torch.cat([reference[f"grad.attention_net.3.attention_{branch}.0.bias"] for branch in "ab"])
    torch.testing.assert_close(network.gates.bias.grad, gates, **close)


def test_an_ungated_checkpoint_loads_too() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"attention_net.0": (6, 4), "attention_net.2.module.0": (5, 6), "attention_net.2.module.2": (1, 5)}
    state = {}
    for name, shape in (shapes | {"classifiers": (2, 6)}).items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    rows = torch.randn(9, 4, generator=generator)
    hidden = torch.relu(rows @ state["attention_net.0.weight"].T + state["attention_net.0.bias"])
    tanh = torch.tanh(hidden @ state["attention_net.2.module.0.weight"].T + state["attention_net.2.module.0.bias"])
    attention = torch.softmax(tanh @ state["attention_net.2.module.2.weight"].T, dim=0)
    expected = (attention.T @ hidden) @ state["classifiers.weight"].T + state["classifiers.bias"]
    torch.testing.assert_close(ABMIL.from_reference(state)(rows.T[None]), expected)


def test_another_method_s_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not a CLAM-SB state dict"):
        ABMIL.from_reference({"fc.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("options", [{}, {"gated": False}, {"heads": 3}], ids=["gated", "plain", "heads"])
def test_gradients_of_the_chunked_path_are_exact(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(monai_mil_chunks(), "cpu", 3)
    torch.manual_seed(0)
    network = ABMIL(5, 3, hidden_dim=4, attention_dim=3, **options).double()
    image = torch.randn(2, 5, 7, dtype=torch.double, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1, 1]], dtype=torch.bool)

    def run(image: torch.Tensor, *_: torch.Tensor) -> list[torch.Tensor]:
        output = network(image, mask, return_dict=True)
        return [output[key] for key in ("logits", "attention", "bag")]

    assert torch.autograd.gradcheck(run, (image, *network.parameters()))


def monai_mil_chunks() -> dict[str, int]:
    from monai_mil.networks.blocks.attention_pool import CHUNK_ROWS

    return CHUNK_ROWS


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 5000),
    heads=st.integers(1, 3),
    gated=st.booleans(),
    seed=st.integers(0, 1000),
    transposed=st.booleans(),
)
def test_chunks_and_plain_operations_agree(n: int, heads: int, gated: bool, seed: int, transposed: bool) -> None:
    torch.manual_seed(seed)
    network = ABMIL(16, 2, hidden_dim=8, attention_dim=6, heads=heads, gated=gated)
    image = torch.randn(1, n, 16).mT if transposed else torch.randn(1, 16, n)
    results = []
    for path in (network._in_chunks, network._whole):
        network.zero_grad()
        output = path(image, None)
        (output["logits"].sum() + (output["attention"] ** 2).sum()).backward()
        results.append([output["logits"], output["attention"], *(p.grad.clone() for p in network.parameters())])
    for chunked, whole in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=2e-6)


def test_a_bag_in_chunks_from_elsewhere_equals_the_whole_bag() -> None:
    network = ABMIL(16, 2, heads=2).eval()
    rows = torch.randn(5000, 16).half()
    output = network.pool_chunks(chunk.numpy() for chunk in rows.split(777))
    whole = network(rows.T[None], return_dict=True)
    assert output.keys() == whole.keys()
    for key in output:
        torch.testing.assert_close(output[key], whole[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [ABMIL, MeanPooling])
def test_a_long_bag_from_elsewhere_leaves_no_memory_behind(cls: type[ABMIL | MeanPooling]) -> None:
    network = cls(1024, 2, hidden_dim=64)
    block = torch.randn(4096, 1024).half()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    network.pool_chunks(block.clone() for _ in range(4))
    before = resident()
    grown = []
    network.pool_chunks(grown.append(resident() - before) or block.clone() for _ in range(30))
    assert max(grown) < 100e6


def test_chunks_are_checked_like_a_bag() -> None:
    network = ABMIL(4, 2)
    with pytest.raises(ValueError, match="without instances"):
        network.pool_chunks([])
    with pytest.raises(ValueError, match="not finite"):
        network.pool_chunks([torch.zeros(3, 4), torch.full((3, 4), torch.nan)])


def test_dropout_zeroes_hidden_values_in_training_only_and_its_gradient_fits() -> None:
    torch.manual_seed(0)  # a slope across a hidden unit's kink fits no gradient
    network = ABMIL(16, 2, dropout=0.5)
    image = torch.randn(1, 16, 64)
    assert not torch.equal(network(image), network(image))
    network.eval()
    torch.testing.assert_close(network(image), network(image), rtol=0, atol=0)
    network.train().double()
    start = network.hidden.weight.detach().clone()
    direction = torch.randn_like(start)

    def loss(step: float) -> torch.Tensor:
        network.hidden.weight.data = start + step * direction
        torch.manual_seed(1)
        return network(image.double()).sum()

    loss(0.0).backward()
    with torch.no_grad():
        slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close((network.hidden.weight.grad * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_dropout_behind_the_gates_zeroes_each_branch_by_itself_in_training_only() -> None:
    torch.manual_seed(0)
    network = ABMIL(4, 2, hidden_dim=3, attention_dim=2000, gate_dropout=0.25)
    image = torch.randn(1, 4, 1)
    gates = network.gates(torch.relu(network.hidden(image[0].T)))
    products = torch.tanh(gates[:, :2000]) * torch.sigmoid(gates[:, 2000:])
    network.score.weight.data = torch.eye(2000)[:1]  # the score is the first product
    network.score.bias.data.zero_()
    scores = torch.stack([network(image, return_dict=True)["attention_logits"][0, 0, 0] for _ in range(400)])
    ratio = scores / products[0, 0]
    kept = ratio.detach() != 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.75**2))
    assert abs(kept.float().mean() - 0.75**2) < 0.1
    network.eval()
    plain = ABMIL(4, 2, hidden_dim=3, attention_dim=2000)
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(image), plain.eval()(image), rtol=0, atol=0)


def test_bfloat16_training_follows_float32() -> None:
    torch.manual_seed(0)
    network = ABMIL(64, 2, hidden_dim=32, attention_dim=16)
    image = torch.randn(1, 64, 3000)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = network(image, return_dict=True)
        output["logits"].float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_logits_keep_the_digits_that_rank_bags_under_autocast() -> None:
    network = ABMIL(8, 2)
    with torch.no_grad():
        network.classifier.bias += 8
    images = torch.randn(1, 8, 1) + 1e-2 * torch.randn(40, 8, 1)
    for describe in (network._in_chunks, network._whole):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = describe(images, None)["logits"]
        assert len(logits[:, 0].unique()) > len(logits[:, 0].bfloat16().unique())


def test_a_dropout_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        ABMIL(4, 2, dropout=1.0)


def test_training_keeps_only_the_activations() -> None:
    saved = []
    network = ABMIL(64, 2, hidden_dim=32, attention_dim=16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        network(torch.randn(1, 4000, 64).mT)
    large = sum(tensor.numel() for tensor in saved if tensor.numel() >= 4000 * 8)
    assert large == 4000 * (64 + 32 + 32), "the input itself, hidden rows and gates"
