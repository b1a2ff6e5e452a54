"""Normal Guidance against the paper's numbers, its authors' gradients, and everything that once broke it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor

from monai_mil.bags import collate_bags
from monai_mil.losses import BagBCE, MILLoss, NormalGuidance, ParameterL1, normal_guidance
from monai_mil.networks import ABMIL, MeanPooling, SliceABMIL, SmoothABMIL, SmoothTransformer1D, TransMIL1D
from monai_mil.training import FullOutputInferer, GradientClip, StopOnNaN, prepare_positioned_bag_batch
from tests.conftest import shared

DIVERGENCES = ("squared_error", "forward_kl", "reverse_kl")
LABEL = torch.zeros(1)


def batch(scores: Sequence[Tensor]) -> dict[str, Tensor]:
    """The output of a network for bags of scores ``[h, n]`` of any length, padded with garbage where they differ."""
    longest = max(bag.shape[1] for bag in scores)
    padded = torch.full((len(scores), len(scores[0]), longest), math.nan, dtype=scores[0].dtype)
    mask = torch.zeros(len(scores), longest, dtype=torch.bool)
    for index, bag in enumerate(scores):
        padded[index, :, : bag.shape[1]] = bag
        mask[index, : bag.shape[1]] = True
    return {"attention_logits": padded, "mask": mask}


def penalty(scores: Tensor, divergence: str = "forward_kl", **options: object) -> Tensor:
    """Of one bag of scores ``[n]`` or ``[h, n]``."""
    return NormalGuidance(divergence, **options)(batch([torch.atleast_2d(scores)]), LABEL)


def gradient(scores: Tensor, divergence: str = "forward_kl", **options: object) -> Tensor:
    scores = scores.detach().clone().requires_grad_()
    penalty(scores, divergence, **options).backward()
    return scores.grad


def reference(attention: np.ndarray, min_std: float = 1e-3) -> np.ndarray:
    """The discrete normal of spec and paper, in float64, by its textbook formula."""
    place = np.arange(1, len(attention) + 1)
    mean = (attention * place).sum()
    variance = max((attention * (place - mean) ** 2).sum(), min_std**2)
    density = np.exp(-((place - mean) ** 2) / (2 * variance))
    return density / density.sum()


def closed_form(length: int, heads: int, bag: int, dtype: torch.dtype) -> Tensor:
    j = torch.arange(1, length + 1, dtype=dtype)
    return torch.stack([torch.sin(0.7 * j * (h + 1) + bag) + 0.05 * j * (1 - 0.3 * h) for h in range(heads)])


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-6)])
@pytest.mark.parametrize(
    ("lengths", "heads", "expected"),
    [
        ((5,), 1, (0.009470805, 0.026940554, 0.029160729)),
        ((7, 12), 1, (0.031287882, 0.218164586, 0.196350034)),
        ((7, 12, 1), 3, (0.036385592, 0.197972613, 0.180065118)),
    ],
)
def test_the_values_of_the_official_loss(
    lengths: tuple[int, ...],
    heads: int,
    expected: tuple[float, ...],
    dtype: torch.dtype,
    tolerance: float,
    renormalize: bool,
) -> None:
    output = batch([closed_form(length, heads, bag, dtype) for bag, length in enumerate(lengths)])
    for divergence, value in zip(DIVERGENCES, expected, strict=True):
        ours = NormalGuidance(divergence, renormalize=renormalize)(output, LABEL)
        assert ours.dtype == dtype
        assert ours.item() == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("case", ["one_scan_1head", "three_scans_1head", "two_scans_4heads"])
def test_values_and_gradients_of_the_official_loss(case: str, divergence: str, renormalize: bool) -> None:
    golden = np.load(shared("golden/normal_guidance_loss.npz"))
    lengths = golden[f"{case}.lengths"].tolist()
    output = batch([bag.T for bag in torch.tensor(golden[f"{case}.scores"]).split(lengths)])
    output["attention_logits"].requires_grad_()
    value = NormalGuidance(divergence, renormalize=renormalize)(output, LABEL)
    value.backward()
    grad = output["attention_logits"].grad
    assert value.item() == pytest.approx(float(golden[f"{case}.{divergence}.penalty"]), abs=1e-5)
    ours = torch.cat([grad[bag, :, :length].T for bag, length in enumerate(lengths)])
    np.testing.assert_allclose(ours, golden[f"{case}.{divergence}.grad_scores"], atol=1e-5)
    assert (grad[~output["mask"][:, None].expand_as(grad)] == 0).all()


@pytest.mark.parametrize("renormalize", [True, False])
def test_what_ABMIL_gives_is_guided(renormalize: bool) -> None:  # noqa: N802
    torch.manual_seed(0)
    network = ABMIL(8, 2, heads=2)
    output = network(torch.randn(2, 8, 9), torch.arange(9) < torch.tensor([[9], [6]]), return_dict=True)
    loss = MILLoss({"guidance": NormalGuidance(renormalize=renormalize)})
    loss(output, torch.tensor([0, 1])).backward()
    a = output["attention"].detach().double().numpy()
    parts = [
        (r * np.log(r / weights)).sum()
        for bag, length in ((0, 9), (1, 6))
        for weights in a[bag, :, :length]
        for r in [reference(weights)]
    ]
    assert loss.last["guidance"].item() == pytest.approx(np.mean(parts), abs=1e-6)
    assert network.score.weight.grad.abs().sum() > 0


def test_the_gradient_of_forward_kl_on_the_scores_is_a_minus_r() -> None:
    scores = 3 * torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = scores.softmax(0).numpy()
    np.testing.assert_allclose(gradient(scores), a - reference(a), rtol=0, atol=1e-15)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_reference_has_no_gradient(divergence: str) -> None:
    scores = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    a = scores.softmax(0)
    r = torch.tensor(reference(a.detach().numpy()))
    terms = {
        "forward_kl": r * (r / a).log(),
        "reverse_kl": a * (a / r).log(),
        "squared_error": (r - a).square(),
    }
    terms[divergence].sum().backward()
    torch.testing.assert_close(gradient(scores, divergence), scores.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_normal_attention_is_not_punished(divergence: str) -> None:
    place = torch.arange(1.0, 41)
    assert penalty(-((place - 20.5) ** 2) / 50, divergence).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_reversed_slices_and_shifted_positions_change_nothing(divergence: str) -> None:
    scores = torch.randn(1, 25, generator=torch.Generator().manual_seed(2))
    given = penalty(scores, divergence)
    torch.testing.assert_close(penalty(scores.flip(1), divergence), given)
    guidance = NormalGuidance(divergence, positions=True)
    place = torch.arange(25.0)[None]
    for positions in (place - 1234.0, place + 1, 7 - place):
        output = {"attention_logits": scores[None], "positions": positions}
        torch.testing.assert_close(guidance(output, LABEL), given, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"renormalize": False}, {"per_head": False}])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_padding_never_changes_the_penalty(divergence: str, options: dict[str, bool]) -> None:
    bags = [torch.randn(3, length, generator=torch.Generator().manual_seed(length)) for length in (4, 17, 9)]
    alone = torch.stack([penalty(bag, divergence, **options) for bag in bags])
    padded = batch(bags)
    padded["attention_logits"].requires_grad_()
    together = NormalGuidance(divergence, **options)(padded, LABEL)
    torch.testing.assert_close(together, alone.mean())
    together.backward()
    assert torch.isfinite(padded["attention_logits"].grad).all()
    for index, bag in enumerate(bags):
        own = padded["attention_logits"].grad[index, :, : bag.shape[1]]
        torch.testing.assert_close(own, gradient(bag, divergence, **options) / 3, rtol=1e-4, atol=1e-7)


def test_padded_zeros_that_count_as_slices_would_change_it() -> None:
    scores = torch.randn(1, 1, 20, generator=torch.Generator().manual_seed(3))
    attention = torch.nn.functional.pad(scores.softmax(2), (0, 20))
    mask = torch.arange(40)[None] < 20
    torch.testing.assert_close(NormalGuidance()({"attention": attention, "mask": mask}, LABEL), penalty(scores[0]))
    assert NormalGuidance()({"attention": attention}, LABEL) > 1.5 * penalty(scores[0])


def test_heads_may_change_places_and_equal_heads_are_one() -> None:
    scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(penalty(scores[[2, 0, 1]]), penalty(scores))
    for per_head in (True, False):
        torch.testing.assert_close(penalty(scores[[0, 0, 0]], per_head=per_head), penalty(scores[0]))


def test_the_heads_mean_is_one_distribution() -> None:
    scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
    mean = scores.softmax(1).mean(0)
    torch.testing.assert_close(penalty(scores, per_head=False), penalty(mean.log()))


def test_a_scaled_attention_is_the_same_unless_its_share_is_asked_for() -> None:
    scores = torch.randn(1, 2, 15, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    full = scores.log_softmax(2)
    part = {"attention": full.exp(), "attention_share": 0.3 * full.exp(), "attention_logits": full + math.log(0.3)}
    whole = {"attention": full.exp()}
    for divergence in DIVERGENCES:
        guidance = NormalGuidance(divergence)
        torch.testing.assert_close(guidance(part, LABEL), guidance(whole, LABEL))
        torch.testing.assert_close(guidance({"attention": 7 * full.exp()}, LABEL), guidance(whole, LABEL))
    as_published = NormalGuidance(renormalize=False)
    difference = as_published(part, LABEL) - as_published(whole, LABEL)
    assert difference.item() == pytest.approx(-math.log(0.3), abs=1e-9)
    del part["attention_logits"]
    assert (as_published(part, LABEL) - as_published(whole, LABEL)).item() == pytest.approx(-math.log(0.3), abs=1e-9)


def test_renormalised_reverse_kl_does_not_reward_a_class_token() -> None:
    full = torch.randn(1, 1, 15, generator=torch.Generator().manual_seed(7)).softmax(2)
    stolen = {"attention_share": 0.1 * full, "attention": full, "attention_logits": (0.1 * full).log()}
    assert NormalGuidance("reverse_kl", renormalize=False)(stolen, LABEL) < 0
    torch.testing.assert_close(
        NormalGuidance("reverse_kl")(stolen, LABEL), NormalGuidance("reverse_kl")({"attention": full}, LABEL)
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("count", [1, 2])
def test_one_slice_and_two_equal_ones_are_normal(count: int, divergence: str) -> None:
    scores = torch.zeros(count)
    assert penalty(scores, divergence).item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(gradient(scores, divergence), torch.zeros(count))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(5, (0.028995, 0.075885, 0.082471)), (40, (0.003653, 0.078597, 0.089446)), (1000, (0.000146, 0.078635, 0.089549))],
)
def test_uniform_attention(count: int, expected: tuple[float, ...]) -> None:
    for divergence, value in zip(DIVERGENCES, expected, strict=True):
        assert penalty(torch.zeros(count), divergence).item() == pytest.approx(value, abs=2e-6)
    place = torch.arange(1, count + 1) - (count + 1) / 2
    r = (-place.square() * 6 / (count**2 - 1)).softmax(0)
    torch.testing.assert_close(gradient(torch.zeros(count)), 1 / count - r, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_attention_on_one_slice_is_punished_only_with_a_minimum_width(divergence: str) -> None:
    scores = torch.zeros(40)
    scores[11] = 200.0
    for renormalize in (True, False):
        assert penalty(scores, divergence, renormalize=renormalize).item() == pytest.approx(0, abs=1e-4)
        torch.testing.assert_close(gradient(scores, divergence, renormalize=renormalize), torch.zeros(40))
    assert penalty(scores, divergence, min_std=2.0) > 0.1


def test_two_far_spikes_keep_their_gradient_without_floors() -> None:
    scores = torch.zeros(40)
    scores[[0, 39]] = 60.0
    for divergence, value in zip(DIVERGENCES, (0.49, 9.67, 3.33), strict=True):
        assert penalty(scores, divergence, renormalize=False).item() == pytest.approx(value, abs=0.006)
        assert gradient(scores, divergence, renormalize=False).abs().max() < 1e-5
    a = scores.double().softmax(0).numpy()
    np.testing.assert_allclose(gradient(scores), a - reference(a), atol=1e-6)
    assert gradient(scores)[0] > 0.4


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("count", "centre"), [(1000, 900.3), (1727, 1650.5)])
def test_a_narrow_peak_far_from_the_first_slice_keeps_its_width(count: int, centre: float, divergence: str) -> None:
    place = torch.arange(1, count + 1, dtype=torch.float64)
    scores = -(place - centre).abs() / 0.35
    rounded = penalty(scores.float(), divergence)
    torch.testing.assert_close(rounded.double(), penalty(scores, divergence), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(scores.float()).double(), gradient(scores), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype: torch.dtype, divergence: str) -> None:
    scores = torch.randn(1, 1000, generator=torch.Generator().manual_seed(8)).to(dtype)
    expected = penalty(scores.float(), divergence)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (scores, scores.float()):
            value = penalty(given, divergence)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected)
            assert torch.isfinite(gradient(given, divergence)).all()


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_long_scans_with_extreme_scores_have_finite_penalties_and_gradients(divergence: str, renormalize: bool) -> None:
    for scale in (0.0, 1.0, 100.0, 10000.0):
        scores = scale * torch.randn(8, 1727, generator=torch.Generator().manual_seed(9))
        assert torch.isfinite(penalty(scores, divergence, renormalize=renormalize))
        assert torch.isfinite(gradient(scores, divergence, renormalize=renormalize)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_attention_that_is_not_a_number_names_its_bag(value: float) -> None:
    scores = torch.zeros(3, 1, 4)
    scores[2, 0, 1] = value
    with pytest.raises(ValueError, match="the attention of bag 2 of the batch: not finite numbers"):
        NormalGuidance()({"attention_logits": scores}, LABEL)


def test_a_scan_without_slices_is_refused() -> None:
    with pytest.raises(ValueError, match="with an instance, got"):
        NormalGuidance()({"attention_logits": torch.zeros(2, 1, 0)}, LABEL)
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="bag 1 of the batch has no instance"):
        NormalGuidance()({"attention_logits": torch.zeros(2, 1, 2), "mask": mask}, LABEL)


def test_a_network_without_attention_is_refused() -> None:
    output = MeanPooling(4, 2)(torch.randn(1, 4, 3), return_dict=True)
    with pytest.raises(ValueError, match=r"needs a network with attention, the output has .*logits; give .* weight 0"):
        NormalGuidance()({name: value for name, value in output.items() if "attention" not in name}, LABEL)


def test_two_lesions_are_free_for_two_heads_and_punished_in_their_mean() -> None:
    place = torch.arange(1.0, 41)
    heads = torch.stack([-((place - centre) ** 2) / 8 for centre in (8, 32)])
    assert penalty(heads).item() == pytest.approx(0, abs=1e-5)
    assert penalty(heads, per_head=False) > 1
    between = gradient(heads.softmax(1).mean(0).log())[20]
    assert between < -0.01, "the gap between the lesions is filled"


def test_positions_in_mm_make_uneven_slices_a_normal_of_space() -> None:
    positions = torch.tensor([[0.0, 1, 2, 3, 5, 7, 9, 14, 19, 24]])
    scores = -((positions - 6) ** 2) / 18
    output = {"attention_logits": scores[:, None], "positions": positions}
    in_mm, by_index = NormalGuidance(positions=True)(output, LABEL), NormalGuidance()(output, LABEL)
    assert by_index > 0.005
    a = scores[0].double().softmax(0)
    mean = (a * positions[0]).sum()
    r = (-((positions[0] - mean) ** 2) / (2 * (a * (positions[0] - mean) ** 2).sum())).softmax(0)
    assert in_mm.item() == pytest.approx((r * (r / a).log()).sum().item(), abs=1e-6)


def test_positions_must_be_there_and_be_numbers() -> None:
    output = {"attention_logits": torch.zeros(2, 1, 3)}
    with pytest.raises(ValueError, match="prepare_positioned_bag_batch"):
        NormalGuidance(positions=True)(output, LABEL)
    positions = torch.tensor([[1.0, 2, 3], [1, math.nan, 3]])
    with pytest.raises(ValueError, match="the positions of bag 1 of the batch: not finite numbers"):
        NormalGuidance(positions=True)({**output, "positions": positions}, LABEL)
    with pytest.raises(ValueError, match="do not fit attention"):
        NormalGuidance(positions=True)({**output, "positions": positions[:, :2]}, LABEL)
    mask = torch.tensor([[True] * 3, [True, False, True]])
    assert torch.isfinite(NormalGuidance(positions=True)({**output, "positions": positions, "mask": mask}, LABEL))


def tiles(angle: float = 0.0) -> Tensor:
    """Tile corners of a slide, turned."""
    grid = torch.cartesian_prod(torch.arange(30.0), torch.arange(30.0)) * 512
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return grid @ turn


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tiles_are_guided_to_a_bivariate_normal(divergence: str) -> None:
    guidance = NormalGuidance(divergence, positions=True)
    away = tiles() - torch.tensor([15.0, 12.0]) * 512
    precision = torch.linalg.inv(torch.tensor([[9.0, 5.0], [5.0, 6.0]]) * 512**2)
    oblique = -((away @ precision) * away).sum(1) / 2
    normal = {"attention_logits": oblique[None, None], "positions": tiles()[None]}
    assert guidance(normal, LABEL).item() == pytest.approx(0, abs=1e-4)
    scores = torch.randn(1, 1, 900, generator=torch.Generator().manual_seed(10))
    upright, turned = (
        guidance({"attention_logits": scores, "positions": tiles(angle)[None]}, LABEL) for angle in (0.0, 0.7)
    )
    torch.testing.assert_close(turned, upright, rtol=1e-3, atol=1e-6)


def test_tiles_in_one_line_are_guided_along_it() -> None:
    scores = torch.randn(1, 1, 20, generator=torch.Generator().manual_seed(11))
    line = torch.arange(20.0)[:, None] * torch.tensor([[3.0, 4.0]]) * 1000
    value = NormalGuidance(positions=True)({"attention_logits": scores, "positions": line[None]}, LABEL)
    torch.testing.assert_close(value, penalty(scores[0]), rtol=1e-3, atol=1e-6)


def test_positive_scans_only() -> None:
    scores = torch.randn(4, 1, 10, generator=torch.Generator().manual_seed(12)).requires_grad_()
    each = normal_guidance(scores.log_softmax(2))[:, 0].detach()
    guidance = NormalGuidance(apply_to="positive")
    for label in (torch.tensor([0, 2, 0, 1]), torch.tensor([[0.0, 0], [1, math.nan], [math.nan, 0], [0, 1]])):
        value = guidance({"attention_logits": scores}, label)
        torch.testing.assert_close(value, (each[1] + each[3]) / 4)
    value.backward()
    assert (scores.grad[[0, 2]] == 0).all()
    assert (scores.grad[[1, 3]] != 0).any()
    scores.grad = None
    nothing = guidance({"attention_logits": scores}, torch.zeros(4, 1))
    nothing.backward()
    assert nothing == 0
    assert (scores.grad == 0).all()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown divergence 'forward kl'; choose from forward_kl"):
        NormalGuidance("forward kl")
    with pytest.raises(ValueError, match="apply_to must be 'all' or 'positive'"):
        NormalGuidance(apply_to="negative")
    with pytest.raises(ValueError, match="eps and min_std must be above 0"):
        NormalGuidance(min_std=0)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("network_class", [SliceABMIL, TransMIL1D, SmoothABMIL, SmoothTransformer1D])
def test_every_network_of_slices_is_guided_padded_or_not(network_class: type, renormalize: bool) -> None:
    torch.manual_seed(0)
    network, guidance = network_class(16, 1), NormalGuidance(renormalize=renormalize)
    image, mask = torch.randn(2, 16, 11), torch.arange(11) < torch.tensor([[11], [6]])
    padded = guidance(network(image, mask, return_dict=True), LABEL)
    alone = [guidance(network(image[[bag], :, :n], return_dict=True), LABEL) for bag, n in ((0, 11), (1, 6))]
    torch.testing.assert_close(padded, torch.stack(alone).mean())
    padded.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in gradients)
    assert sum(grad.abs().sum() for grad in gradients) > 0


def test_a_trainer_of_the_ct_protocol_draws_attention_to_a_normal_in_mm() -> None:
    torch.manual_seed(0)
    items = [
        {"image": torch.randn(8, n), "label": [float(n % 2)], "positions_mm": 2.5 * torch.arange(float(n))}
        for n in range(20, 36)
    ]
    network = SliceABMIL(8, 1, attention_dim=16)
    torch.nn.init.normal_(network.score.weight, std=2)
    guidance = NormalGuidance(positions=True)
    loss = MILLoss({"bag": BagBCE(), "guidance": guidance, "l1": ParameterL1(network)}, {"guidance": 10, "l1": 1e-4})
    penalties = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=15,
        train_data_loader=DataLoader(Dataset(items), batch_size=8, collate_fn=collate_bags),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9),
        loss_function=loss,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_positioned_bag_batch,
        train_handlers=[GradientClip(network, 1.0), StopOnNaN()],
        accumulation_steps=2,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: penalties.append(loss.last["guidance"].item()))
    trainer.run()
    assert np.mean(penalties[-2:]) < 0.5 * np.mean(penalties[:2])
