"""The divergence from the anchor: values, gradients, targets, the paper's theorem, scores that break other forms."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monai_mil.losses import AnchorDivergence
from monai_mil.losses.anchor_divergence import log_normalised_sigmoid
from tests.networks.asmil_by_token import normalised_sigmoid

LABEL = torch.tensor([0])


def output_of(scores: Tensor, anchor: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {"attention_logits": scores, "anchor_logits": anchor, **more}


def weights(scores: Tensor) -> Tensor:
    return log_normalised_sigmoid(scores, torch.ones_like(scores[:, 0], dtype=torch.bool)).exp()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_normalised_sigmoid_is_eq_5(temperature: float) -> None:
    scores = torch.randn(2, 3, 50)
    torch.testing.assert_close(weights(scores / temperature), normalised_sigmoid(scores, temperature))


@pytest.mark.parametrize("target", ["nsf", "softmax"])
def test_the_gradient_is_attention_minus_target(target: str) -> None:
    scores, anchor = torch.randn(2, 3, 40, requires_grad=True), torch.randn(2, 3, 40)
    loss = AnchorDivergence(target)(output_of(scores, anchor), LABEL)
    loss.backward()
    expected = weights(anchor) if target == "nsf" else anchor.softmax(dim=2)
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(dim=2) - expected) / 6, rtol=0, atol=1e-6)


def test_the_anchor_gets_no_gradient() -> None:
    anchor = torch.randn(1, 2, 9, requires_grad=True)
    AnchorDivergence()(output_of(torch.randn(1, 2, 9, requires_grad=True), anchor), LABEL).backward()
    assert anchor.grad is None


def test_equal_attention_costs_nothing_and_other_attention_something() -> None:
    scores = torch.randn(2, 3, 40)
    loss = AnchorDivergence("softmax")
    torch.testing.assert_close(loss(output_of(scores, scores + 5), LABEL), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert loss(output_of(scores, torch.randn(2, 3, 40)), LABEL) > 0.1


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 60),
    spread=st.floats(0, 300),
    target=st.sampled_from(["nsf", "softmax"]),
    temperature=st.floats(0.05, 5),
    seed=st.integers(0, 1000),
)
def test_it_is_finite_and_never_negative(n: int, spread: float, target: str, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, anchor = spread * torch.randn(2, 1, 2, n, generator=generator)
    scores.requires_grad_()
    loss = AnchorDivergence(target, temperature)(output_of(scores, anchor), LABEL)
    loss.backward()
    assert loss >= -1e-5 * max(1.0, spread)
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_the_released_program_s_term_has_the_same_gradient_and_differs_by_an_entropy() -> None:
    scores, anchor = torch.randn(1, 6, 200, requires_grad=True), torch.randn(1, 6, 200)
    target = normalised_sigmoid(anchor, 0.5)
    released = (-target * scores.softmax(dim=2).log()).mean()
    loss = AnchorDivergence("nsf", temperature=0.5, reduction="mean_all")(output_of(scores, anchor), LABEL)
    entropy = (-target * target.log()).mean()
    torch.testing.assert_close(loss + entropy, released, rtol=0, atol=1e-6)
    (expected,) = torch.autograd.grad(released, scores)
    (actual,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("reduction", ["tiles", "mean_all"])
@pytest.mark.parametrize("target", ["nsf", "softmax"])
def test_padding_changes_nothing(target: str, reduction: str) -> None:
    loss = AnchorDivergence(target, reduction=reduction)
    scores, anchor = torch.randn(2, 3, 9, requires_grad=True), torch.randn(2, 3, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    padded = output_of(scores.masked_fill(~mask[:, None], -torch.inf), anchor, mask=mask)
    padded["anchor_logits"] = anchor.masked_fill(~mask[:, None], -torch.inf)
    apart = [
        loss(output_of(scores[:1], anchor[:1]), LABEL),
        loss(output_of(scores[1:, :, :4], anchor[1:, :, :4]), LABEL),
    ]
    value = loss(padded, LABEL)
    torch.testing.assert_close(value, torch.stack(apart).mean())
    value.backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[1, :, 4:] == 0).all()


def test_one_tile_costs_nothing() -> None:
    assert AnchorDivergence()(output_of(torch.randn(1, 4, 1), torch.randn(1, 4, 1)), LABEL) == 0


def test_scores_far_below_zero_still_sum_to_one() -> None:
    torch.testing.assert_close(weights(torch.tensor([[[-30.0, -31.0, -32.0]]])).sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights(torch.full((1, 1, 4), -120.0)), torch.full((1, 1, 4), 0.25))


def test_a_spread_that_breaks_the_softmax_s_logarithm_keeps_a_finite_loss_and_gradient() -> None:
    scores = torch.tensor([[[0.0, -200.0, 300.0]]], requires_grad=True)
    loss = AnchorDivergence()(output_of(scores, torch.zeros(1, 1, 3)), LABEL)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor((300.0 + 500.0) / 3 - math.log(3)))
    torch.testing.assert_close(scores.grad, torch.tensor([[[-1.0, -1.0, 2.0]]]) / 3)


def test_autocast_keeps_it_in_float32() -> None:
    scores, anchor = torch.randn(1, 2, 30), torch.randn(1, 2, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = AnchorDivergence()(output_of(scores, anchor), LABEL)
    torch.testing.assert_close(loss, AnchorDivergence()(output_of(scores, anchor), LABEL), rtol=0, atol=0)


def test_an_anchor_that_warms_up_does_not_count() -> None:
    scores = torch.randn(2, 2, 30, requires_grad=True)
    output = output_of(scores, torch.randn(2, 2, 30), anchor_weight=torch.zeros(2))
    loss = AnchorDivergence()(output, LABEL)
    loss.backward()
    assert loss == 0
    assert (scores.grad == 0).all()


@settings(max_examples=50, deadline=None)
@given(
    high=st.integers(1, 30),
    low=st.integers(0, 200),
    tau=st.floats(0.5, 12),
    gamma=st.floats(0, 20),
    seed=st.integers(0, 1000),
)
def test_theorem_1_high_scores_share_equally_and_low_ones_get_next_to_nothing(
    high: int, low: int, tau: float, gamma: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    above = tau + gamma * torch.rand(high, generator=generator, dtype=torch.float64)
    below = -tau - gamma * torch.rand(low, generator=generator, dtype=torch.float64)
    share = weights(torch.cat([above, below])[None, None])[0, 0]
    assert share[:high].max() / share[:high].min() <= (1 + math.exp(-tau)) * (1 + 1e-12)
    assert (share[high:] <= math.exp(-tau) / high * (1 + 1e-12)).all()


def test_no_temperature_of_a_softmax_does_both() -> None:
    tau, gamma, high, flatness, suppression = 2.0, 6.0, 10, 1.2, 0.005
    assert gamma / math.log(flatness) > 2 * tau / math.log(high / suppression)
    scores = torch.cat([torch.linspace(tau, tau + gamma, high), torch.tensor([-tau])]).double()
    share = weights(scores[None, None])[0, 0]
    assert share[:high].max() / share[:high].min() <= flatness
    assert share[high] <= math.exp(-tau) / high
    for temperature in torch.logspace(-2, 3, 200):
        soft = (scores / temperature).softmax(dim=0)
        flat = soft[:high].max() / soft[:high].min() <= flatness
        assert not (flat and soft[high] <= suppression)


def test_entmax_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "entmax", None)
    with pytest.raises(ImportError, match=r"pip install 'monai-mil\[entmax\]'"):
        AnchorDivergence("entmax")


def test_entmax_leaves_out_instances_and_the_gradient_is_attention_minus_target() -> None:
    entmax = pytest.importorskip("entmax", reason="entmax is not installed")
    scores, anchor = torch.randn(1, 2, 30, requires_grad=True), 4 * torch.randn(1, 2, 30)
    mask = torch.ones(1, 30, dtype=torch.bool)
    mask[:, 20:] = False
    AnchorDivergence("entmax")(output_of(scores, anchor, mask=mask), LABEL).backward()
    target = torch.zeros(1, 2, 30)
    target[:, :, :20] = entmax.entmax15(anchor[:, :, :20], dim=2)
    assert (target[:, :, :20] == 0).any()
    attention = scores.detach().masked_fill(~mask[:, None], -torch.inf).softmax(dim=2)
    torch.testing.assert_close(scores.grad, (attention - target) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "sigmoid"}, "choose from nsf, softmax, entmax"),
        ({"reduction": "mean"}, "reduction must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorDivergence(**options)


def test_an_output_without_anchor_or_attention_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no 'anchor_logits' .*AnchorInferer"):
        AnchorDivergence()({"attention_logits": torch.zeros(1, 1, 3)}, LABEL)
    with pytest.raises(ValueError, match="no 'attention_logits'"):
        AnchorDivergence()({"logits": torch.zeros(1, 2)}, LABEL)
    with pytest.raises(ValueError, match="are not the network's"):
        AnchorDivergence()(output_of(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3)), LABEL)


def test_alpha_says_which_entmax() -> None:
    entmax = pytest.importorskip("entmax", reason="entmax is not installed")
    scores, anchor = torch.randn(1, 2, 9), 2 * torch.randn(1, 2, 9)
    for alpha, target in ((1.25, entmax.entmax_bisect(anchor, alpha=1.25)), (2.0, entmax.sparsemax(anchor, dim=2))):
        gained = AnchorDivergence("entmax", entmax_alpha=alpha)(output_of(scores, anchor), LABEL)
        own = torch.where(target > 0, target * target.log(), 0.0)
        torch.testing.assert_close(gained, (own - target * scores.log_softmax(dim=2)).sum(dim=2).mean())
    with pytest.raises(ValueError, match="entmax_alpha must be above 1"):
        AnchorDivergence(entmax_alpha=1.0)


@pytest.mark.parametrize(("scale", "offset"), [(0.5, 3.0), (2.0, -3.0), (1.0, 0.0)])
def test_the_target_is_that_of_scores_moved_and_stretched(scale: float, offset: float) -> None:
    scores, anchor = torch.randn(1, 2, 9), 2 * torch.randn(1, 2, 9)
    moved = {"temperature": scale, "offset": offset}
    gained = AnchorDivergence("nsf", **moved)(output_of(scores, anchor), LABEL)
    torch.testing.assert_close(gained, AnchorDivergence("nsf")(output_of(scores, anchor / scale + offset), LABEL))
    unmoved = AnchorDivergence("softmax", temperature=scale)(output_of(scores, anchor), LABEL)
    torch.testing.assert_close(AnchorDivergence("softmax", **moved)(output_of(scores, anchor), LABEL), unmoved)


def test_far_below_0_the_normalised_sigmoid_is_a_softmax_and_far_above_equal_shares() -> None:
    scores, anchor = torch.randn(1, 2, 9), torch.randn(1, 2, 9)
    below = AnchorDivergence("nsf", offset=-20.0)(output_of(scores, anchor), LABEL)
    torch.testing.assert_close(below, AnchorDivergence("softmax")(output_of(scores, anchor), LABEL))
    above = AnchorDivergence("nsf", offset=20.0)(output_of(scores, anchor), LABEL)
    torch.testing.assert_close(above, AnchorDivergence("softmax")(output_of(scores, torch.zeros_like(anchor)), LABEL))
