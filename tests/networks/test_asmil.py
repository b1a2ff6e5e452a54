"""ASMIL: the reference's numbers, the token-by-token network's on any shape, hidden tokens, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from monai_mil.losses import AnchorDivergence, BagCrossEntropy, MILLoss
from monai_mil.losses.anchor_divergence import log_normalised_sigmoid
from monai_mil.networks import ASMIL, instance_scores
from monai_mil.networks.blocks.attention_pool import CHUNK_ROWS
from monai_mil.networks.reference.asmil import asmil_parameters
from tests.conftest import shared
from tests.networks.asmil_by_token import ByToken, heads_tokens, normalised_sigmoid

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=["asmil_small", "asmil_few_tiles"])
def golden(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    with np.load(shared(f"golden/{request.param}.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def weights_of(golden: dict[str, Tensor], whose: str = "online") -> dict[str, Tensor]:
    return {name.removeprefix(f"{whose}."): value for name, value in golden.items() if name.startswith(f"{whose}.")}


def without_dropout(network: ASMIL) -> ASMIL:
    network.attention.dropout = network.bag_attention.dropout = 0.0
    return network


def assert_same_gradients(network: ASMIL, plain: ByToken, atol: float) -> None:
    gradients = asmil_parameters(
        {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in plain.named_parameters()}
    )
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=atol)


def test_the_reference_s_answers_are_reproduced(golden: dict[str, Tensor]) -> None:
    network = ASMIL.from_reference(weights_of(golden), token_logits=True).eval()
    output = network(golden["input"].mT, return_dict=True)
    torch.testing.assert_close(output["logits"], golden["out.slide_logits"], **CLOSE)
    torch.testing.assert_close(output["token_logits"][0], golden["out.token_logits"], **CLOSE)
    torch.testing.assert_close(heads_tokens(output["attention_logits"]), golden["out.attention_logits_HTN"], **CLOSE)
    torch.testing.assert_close(instance_scores(output)[0, 0], golden["out.tile_attention_N"], **CLOSE)


def test_the_reference_s_anchor_losses_and_gradients_are_reproduced(golden: dict[str, Tensor]) -> None:
    network = ASMIL.from_reference(weights_of(golden)).eval()
    anchor = ASMIL.from_reference(weights_of(golden, "anchorweight")).anchor_copy()
    image = golden["input"].mT
    output = network(image, return_dict=True)
    output["anchor_logits"] = anchor.attention_scores(image, None, output)
    torch.testing.assert_close(heads_tokens(output["anchor_logits"]), golden["anchor.attention_logits_HTN"], **CLOSE)
    real = torch.ones(1, image.shape[2], dtype=torch.bool)
    weights = log_normalised_sigmoid(output["anchor_logits"], real).exp()
    torch.testing.assert_close(heads_tokens(weights), golden["anchor.weights_HTN"], **CLOSE)
    loss = MILLoss({"bag": BagCrossEntropy(), "anchor": AnchorDivergence()})
    total = loss(output, golden["label"])
    torch.testing.assert_close(loss.last["bag"], golden["loss.cross_entropy"], **CLOSE)
    torch.testing.assert_close(loss.last["anchor"], golden["loss.anchor_kl"], **CLOSE)
    total.backward()
    expected = asmil_parameters(weights_of(golden, "grad"))
    parameters = dict(network.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            parameters[name].grad, gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("spread", [1e-6, 1.0, 5.0])
@pytest.mark.parametrize(
    ("n", "d", "i", "t"),
    [
        (1, 384, 128, 8),
        (2, 384, 128, 8),
        (7, 384, 128, 8),
        (100, 166, 128, 8),
        (1000, 384, 128, 16),
        (1000, 1024, 512, 8),
    ],
)
def test_it_equals_one_block_a_token(n: int, d: int, i: int, t: int, spread: float) -> None:
    torch.manual_seed(0)
    plain = ByToken(d, 3, i, t).eval()
    torch.nn.init.normal_(plain.q, std=spread)
    torch.nn.init.normal_(plain.cls, std=spread)
    network = ASMIL.from_reference(plain.state_dict(), token_logits=True).eval()
    rows = torch.randn(1, n, d)
    tokens, logits, scores = plain(rows)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output = network(rows.mT, return_dict=True)
        torch.testing.assert_close(output["logits"], logits, **CLOSE)
        torch.testing.assert_close(output["token_logits"][0], tokens, **CLOSE)
        torch.testing.assert_close(heads_tokens(output["attention_logits"]), scores, **CLOSE)


def test_its_gradients_equal_one_block_a_token_s_with_the_same_tokens_hidden() -> None:
    torch.manual_seed(0)
    plain = ByToken(20, 3, 16, 6, drop=3, dropout=0.0)
    torch.nn.init.normal_(plain.q)
    torch.nn.init.normal_(plain.cls)
    network = without_dropout(ASMIL.from_reference(plain.state_dict()))
    network.always_dropped = 3
    rows, label = torch.randn(1, 40, 20), torch.tensor([1])
    losses = []
    for run in (lambda: plain(rows)[1], lambda: network(rows.mT)):
        torch.manual_seed(7)
        losses.append(F.cross_entropy(run(), label))
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    assert_same_gradients(network, plain, atol=1e-6)


def test_the_released_program_s_loss_has_the_gradients_of_one_block_a_token() -> None:
    torch.manual_seed(0)
    plain, slow = ByToken(20, 3, 16, 6).eval(), ByToken(20, 3, 16, 6).eval()
    for each in (plain, slow):
        torch.nn.init.normal_(each.q)
        torch.nn.init.normal_(each.cls)
    rows, label = torch.randn(1, 40, 20), torch.tensor([1])
    _, logits, scores = plain(rows)
    target = normalised_sigmoid(slow(rows)[2].detach(), 0.5)
    released = F.cross_entropy(logits, label) + (-target * scores.log_softmax(dim=2)).mean()
    released.backward()
    network = ASMIL.from_reference(plain.state_dict()).eval()
    output = network(rows.mT, return_dict=True)
    anchor = ASMIL.from_reference(slow.state_dict()).anchor_copy()
    output["anchor_logits"] = anchor.attention_scores(rows.mT, None, output)
    loss = MILLoss({"bag": BagCrossEntropy(), "anchor": AnchorDivergence(temperature=0.5, reduction="mean_all")})
    total = loss(output, label)
    total.backward()
    torch.testing.assert_close(total - (target * target.log()).mean(), released, rtol=0, atol=1e-6)
    assert_same_gradients(network, plain, atol=1e-7)


def test_training_hides_tokens_and_evaluation_none() -> None:
    torch.manual_seed(0)
    network = without_dropout(ASMIL(6, 2, hidden_dim=16, tokens=5, drop=0.6, token_logits=True))
    torch.nn.init.normal_(network.attention.token)
    image = torch.randn(3, 6, 12)
    output = network(image, return_dict=True)
    assert output["attention"].shape == (3, 40, 12)
    assert not torch.equal(network(image), network(image))
    network.eval()
    torch.testing.assert_close(network(image), network(image), rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 16), drop=st.floats(0, 0.99), fixed=st.booleans(), seed=st.integers(0, 100))
def test_at_least_one_token_of_every_bag_is_kept(tokens: int, drop: float, fixed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    network = ASMIL(4, 2, hidden_dim=8, tokens=tokens, drop=drop, drop_mode="fixed" if fixed else "bernoulli")
    kept = network._draw_kept(torch.zeros(50, tokens, 8))
    assert kept.shape == (50, tokens)
    assert kept.any(dim=1).all()
    if fixed:
        assert (kept.sum(dim=1) == max(1, tokens - round(drop * tokens))).all()


def test_tokens_are_hidden_as_often_as_asked() -> None:
    torch.manual_seed(0)
    kept = ASMIL(4, 2, hidden_dim=8, tokens=8, drop=0.5)._draw_kept(torch.zeros(20_000, 8, 8)).float()
    expected = 0.5 / (1 - 0.5**8)  # given that not all are hidden
    torch.testing.assert_close(kept.mean(dim=0), torch.full((8,), expected), rtol=0, atol=0.015)


def test_the_order_of_the_tiles_does_not_matter() -> None:
    network = ASMIL(6, 2, hidden_dim=16).eval()
    torch.nn.init.normal_(network.attention.token)
    image, order = torch.randn(1, 6, 50), torch.randperm(50)
    output, shuffled = (network(each, return_dict=True) for each in (image, image[:, :, order]))
    torch.testing.assert_close(shuffled["logits"], output["logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled["attention"], output["attention"][:, :, order])


def test_one_tile_has_all_attention() -> None:
    output = ASMIL(6, 2, hidden_dim=16).eval()(torch.randn(2, 6, 1), return_dict=True)
    assert (output["attention"] == 1).all()
    assert torch.isfinite(output["logits"]).all()


def test_chunks_and_the_whole_bag_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 7)
    network = ASMIL(6, 3, hidden_dim=16).eval()
    torch.nn.init.normal_(network.attention.token)
    image, mask = torch.randn(2, 6, 40), torch.rand(2, 40) < 0.7
    whole = network(image, mask, return_dict=True)
    with torch.no_grad():
        chunked = network(image, mask, return_dict=True)
    for key, value in whole.items():
        torch.testing.assert_close(chunked[key], value, rtol=1e-5, atol=1e-6)


def test_a_bag_in_chunks_from_elsewhere_equals_the_whole_bag() -> None:
    network = ASMIL(6, 3, hidden_dim=16, token_logits=True).eval()
    rows = torch.randn(5000, 6).half()
    output = network.pool_chunks(chunk.numpy() for chunk in rows.split(777))
    whole = network(rows.T[None], return_dict=True)
    assert output.keys() == whole.keys()
    for key, value in output.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="without instances"):
        network.pool_chunks([])
    with pytest.raises(ValueError, match="not finite"):
        network.pool_chunks([torch.zeros(3, 6), torch.full((3, 6), torch.nan)])


def test_training_keeps_hidden_rows_and_attention_and_no_projection_of_a_tile() -> None:
    saved: dict[int, int] = {}
    network = ASMIL(64, 2, hidden_dim=32, tokens=2, heads=4)

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.randn(1, 4000, 64).mT)
    assert sum(size for size in saved.values() if size >= 4000 * 8 * 4) == 4 * 4000 * (64 + 32 + 8)


def test_the_hidden_width_follows_the_encoder() -> None:
    widths = {166: 128, 384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768, 1000: 496}
    for in_channels, expected in widths.items():
        assert ASMIL(in_channels, 2).hidden.out_features == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((384, 2, 128, 8), 649_618), ((384, 4, 128, 16), 1_187_524), ((1024, 2, 512, 8), 10_003_986)],
)
def test_it_has_the_released_network_s_parameters_but_the_unused_norm(sizes: tuple[int, ...], expected: int) -> None:
    network = ASMIL(*sizes, token_logits=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected - 2 * sizes[2]


def test_what_the_tokens_and_the_class_token_begin_with() -> None:
    network = ASMIL(384, 2)
    assert 0 < network.attention.token.std() < 2e-6
    assert (network.bag_attention.token == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 12}, "heads must divide hidden_dim"),
        ({"drop": 1.0}, "drop must be at least 0 and below 1"),
        ({"drop_mode": "random"}, "drop_mode must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASMIL(6, 2, **options)


def test_another_method_s_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not this network's state dict"):
        ASMIL.from_reference({"fc.weight": torch.zeros(2, 2)})
    state = ByToken(8, 2, 16, 3).state_dict()
    with pytest.raises(ValueError, match="'model' is no tensor"):
        ASMIL.from_reference({"model": state, "epoch": 3})
    with pytest.raises(ValueError, match=r"tokens \[0, 2\] only"):
        ASMIL.from_reference({name: value for name, value in state.items() if ".1." not in name})


@pytest.mark.parametrize("normalisation", ["nsf", "mixture"])
def test_other_normalisations_are_the_paper_s_in_chunks_and_padding_too(
    normalisation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 4)
    torch.manual_seed(0)
    network = ASMIL(6, 2, hidden_dim=8, tokens=3, heads=2, drop=0.0, normalisation=normalisation).double()
    torch.nn.init.normal_(network.attention.token)
    without_dropout(network)
    image, mask = torch.randn(2, 6, 9, dtype=torch.double), torch.arange(9) < torch.tensor([[9], [5]])
    output = network(image, mask, return_dict=True)
    scores = network.attention_scores(image, mask, output)[1, :, :5]
    apart = normalised_sigmoid(scores)
    expected = apart if normalisation == "nsf" else (scores.softmax(dim=1) + apart) / 2
    torch.testing.assert_close(output["attention"][1, :, :5], expected)
    torch.testing.assert_close(output["attention_logits"].softmax(dim=2), output["attention"])
    assert (output["attention"][1, :, 5:] == 0).all()
    output["logits"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)
    with torch.no_grad():
        for key, value in network.eval()(image, mask, return_dict=True).items():
            torch.testing.assert_close(value, output[key].detach())
        scripted = torch.jit.script(network)
        torch.testing.assert_close(scripted(image, mask), output["logits"].detach())


def test_the_mixture_is_learned_and_other_words_are_refused() -> None:
    network = ASMIL(6, 2, hidden_dim=8, tokens=2, heads=2, normalisation="mixture")
    torch.nn.init.normal_(network.attention.token)
    network(torch.randn(1, 6, 5)).sum().backward()
    assert network.mixture.grad != 0
    with pytest.raises(ValueError, match="normalisation must be"):
        ASMIL(6, 2, normalisation="sigmoid")  # type: ignore[arg-type]
