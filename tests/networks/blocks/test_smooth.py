"""The smooth operator: the formula's values without its matrix, exact gradients, linear memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.networks import SmoothABMIL
from monai_mil.networks.blocks.smooth import SmoothOperator

FORMS = pytest.mark.parametrize("exact", [False, True], ids=["steps", "solve"])


def operator(neighbours: int = 1, steps: int = 10, exact: bool = False, raw_alpha: float = 0.4) -> SmoothOperator:
    smooth = SmoothOperator(neighbours, steps, exact).double()
    with torch.no_grad():
        smooth.raw_alpha.fill_(raw_alpha)
    return smooth


def dense(smooth: SmoothOperator, n: int) -> Tensor:
    """The operator as the matrix of its definition, ``[n, n]``."""
    index, one = torch.arange(n), torch.eye(n, dtype=torch.double)
    apart = (index[:, None] - index).abs()
    adjacency = ((apart > 0) & (apart <= smooth.neighbours)).double()
    adjacency = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    alpha = torch.sigmoid(smooth.raw_alpha).detach()
    if smooth.exact:
        return torch.linalg.inv(one - alpha * adjacency) * (1 - alpha)
    matrix = one
    for _ in range(smooth.steps):
        matrix = (1 - alpha) * one + alpha * adjacency @ matrix
    return matrix


@FORMS
@pytest.mark.parametrize("neighbours", [1, 2, 40])
@pytest.mark.parametrize("n", [1, 2, 5, 33, 100])
def test_it_is_its_definition_and_its_transpose(n: int, neighbours: int, exact: bool) -> None:
    smooth = operator(neighbours, 7, exact)
    signal = torch.randn(2, 3, n, dtype=torch.double)
    matrix = dense(smooth, n)
    torch.testing.assert_close(smooth(signal), signal @ matrix.T)
    torch.testing.assert_close(smooth(signal, transposed=True), signal @ matrix)


@FORMS
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("slices_first", [False, True])
def test_its_gradients_are_exact(exact: bool, transposed: bool, slices_first: bool) -> None:
    smooth = operator(2, 4, exact)
    mask = torch.arange(40) < torch.tensor([[36], [40]])
    signal = torch.randn(2, 40, 3, dtype=torch.double).mT if slices_first else torch.randn(2, 3, 40, dtype=torch.double)

    def run(signal: Tensor, alpha: Tensor) -> Tensor:
        return torch.func.functional_call(smooth, {"raw_alpha": alpha}, (signal, mask, transposed))

    assert torch.autograd.gradcheck(run, (signal.requires_grad_(), smooth.raw_alpha), fast_mode=True)


@FORMS
def test_plain_operations_agree(exact: bool) -> None:
    smooth = operator(2, 5, exact).float()
    signal = torch.randn(2, 3, 70)
    mask = torch.arange(70) < torch.tensor([[11], [70]])
    torch.testing.assert_close(torch.jit.script(smooth)(signal, mask), smooth(signal, mask))


@FORMS
def test_padding_is_no_neighbour(exact: bool) -> None:
    smooth = operator(3, 10, exact)
    signal = torch.randn(1, 4, 50, dtype=torch.double)
    mask = torch.arange(50)[None] < 44
    alone = smooth(signal[:, :, :44])
    signal[:, :, 44:] = 1e9
    padded = smooth(signal, mask)
    torch.testing.assert_close(padded[:, :, :44], alone)
    assert (padded[:, :, 44:] == 0).all()


def test_a_single_slice_loses_its_neighbours_part_as_in_the_reference() -> None:
    signal = torch.randn(1, 4, 1)
    torch.testing.assert_close(SmoothOperator()(signal), 0.5 * signal)


def test_ten_steps_are_close_to_the_limit() -> None:
    signal = torch.randn(1, 8, 300)
    torch.testing.assert_close(SmoothOperator()(signal), SmoothOperator(exact=True)(signal), rtol=0, atol=1e-3)


def test_nothing_quadratic_is_kept_for_the_gradient() -> None:
    n, saved = 3000, []
    network = SmoothABMIL(16, 1, attention_dim=8)
    image = torch.randn(1, n, 16).mT
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        network(image)
    assert max(saved) <= 16 * n
    assert sum(saved) <= 20 * 16 * n


def test_smoothing_before_and_after_the_linear_maps_is_one() -> None:
    """Early placement smooths attention and hidden columns; the definition smooths the features."""
    network = SmoothABMIL(12, 2, attention_dim=5, steps=4).double().eval()
    rows = torch.randn(30, 12, dtype=torch.double)
    smooth = dense(network.smooth, 30) @ rows
    hidden = torch.tanh(smooth @ network.hidden.scaled_weight().T + network.hidden.bias)
    attention = torch.softmax(hidden @ network.score.scaled_weight().T + network.score.bias, dim=0)
    output = network(rows.T[None], return_dict=True)
    torch.testing.assert_close(output["attention"][0].T, attention)
    torch.testing.assert_close(output["bag"], attention.T @ smooth)


def test_the_spectral_norm_follows_training_as_torch_s_does() -> None:
    network = SmoothABMIL(12, 1, attention_dim=5).train()
    other = torch.nn.Linear(12, 5)
    other.weight.data.copy_(network.hidden.weight.data)
    torch.nn.utils.parametrizations.spectral_norm(other)
    state = other.parametrizations.weight[0]
    state._u.copy_(network.hidden.left)
    state._v.copy_(network.hidden.right)
    for _ in range(3):
        expected, weight = other.weight, network.hidden.scaled_weight()
        torch.testing.assert_close(weight, expected)
        direction = torch.randn_like(weight)
        gradients = [
            torch.autograd.grad((each * direction).sum(), source)[0]
            for each, source in ((weight, network.hidden.weight), (expected, other.parametrizations.weight.original))
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("neighbours", "steps"), [(0, 10), (1, 0)])
def test_settings_that_smooth_nothing_are_refused(neighbours: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SmoothOperator(neighbours, steps)


def test_an_unknown_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="'early' or 'late'"):
        SmoothABMIL(4, 1, placement="mid")
