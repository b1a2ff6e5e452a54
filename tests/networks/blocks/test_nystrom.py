"""Nystroem attention against its definition with all matrices written out, and its gradients in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_mil.networks.blocks import nystrom
from monai_mil.networks.blocks.nystrom import NystromAttention, row_times_pseudo_inverse, times_pseudo_inverse


def spelled_out(layer: NystromAttention, tokens: Tensor) -> Tensor:
    """One bag, step by step, every matrix kept: tokens ``[n, D]``."""
    count, channels = tokens.shape
    marks, heads = layer.landmarks, layer.heads
    tokens = torch.cat([tokens.new_zeros(-count % marks, channels), tokens])
    query, key, value = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in layer.project(tokens).chunk(3, 1))
    query = query * query.shape[2] ** -0.5
    query_marks, key_marks = (part.unflatten(1, (marks, -1)).mean(2) for part in (query, key))
    to_marks = torch.softmax(query @ key_marks.mT, 2)
    between = torch.softmax(query_marks @ key_marks.mT, 2)
    from_marks = torch.softmax(query_marks @ key.mT, 2)
    inverse = between.mT / (between.sum(2).max() * between.sum(1).max())
    one = torch.eye(marks, dtype=tokens.dtype)
    for _ in range(layer.iterations):
        product = between @ inverse
        inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    mixed = to_marks @ inverse @ (from_marks @ value)
    taps = layer.mix.weight[:, 0]
    reach = taps.shape[1] // 2
    around = F.pad(value, (0, 0, reach, reach)).unfold(1, taps.shape[1], 1)
    mixed = mixed + torch.einsum("hnet,ht->hne", around, taps)
    return layer.output(mixed.transpose(0, 1).flatten(1))[-count:]


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 50, 64, 333])
def test_it_is_its_definition_without_the_long_matrices(n: int) -> None:
    layer = NystromAttention(24, heads=3, landmarks=8).double()
    tokens = torch.randn(2, n, 24, dtype=torch.double)
    expected = torch.stack([spelled_out(layer, one) for one in tokens])
    torch.testing.assert_close(layer(tokens), expected)
    for place in {0, n // 2, n - 1}:
        torch.testing.assert_close(layer.row(tokens, place), expected[:, place])


@pytest.mark.parametrize("kernel", [1, 5, 33])
@pytest.mark.parametrize("n", [4, 9, 40, 41, 64, 333])
def test_chunks_without_gradients_give_the_same(n: int, kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nystrom, "CHUNK_TOKENS", 7)
    layer = NystromAttention(24, heads=3, landmarks=8, kernel=kernel).double()
    tokens = torch.randn(2, n, 24, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(layer._in_chunks(tokens), layer._whole(tokens))
        for place in {0, n // 2, n - 1}:
            torch.testing.assert_close(layer._row_in_chunks(tokens, place), layer._whole(tokens)[:, place])


def test_chunks_run_under_autocast_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nystrom, "CHUNK_TOKENS", 16)
    layer, tokens = NystromAttention(24, heads=3, landmarks=8), torch.randn(1, 50, 24)
    with torch.no_grad():
        exact = layer(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = layer(tokens)
            row = layer.row(tokens, 4)
    assert half.dtype == row.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(row.float(), exact[:, 4], rtol=0.05, atol=0.05)


def test_chunks_are_taken_for_long_sequences_without_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NystromAttention(16, heads=2, landmarks=4)
    taken = []
    monkeypatch.setattr(layer, "_in_chunks", lambda tokens: taken.append(tokens.shape[1]) or tokens)
    monkeypatch.setattr(nystrom, "CHUNK_TOKENS", 20)
    layer(torch.randn(1, 21, 16))
    with torch.no_grad():
        layer(torch.randn(1, 20, 16))
        layer(torch.randn(1, 21, 16))
    assert taken == [21]


def test_gradients_are_those_of_the_definition() -> None:
    layer = NystromAttention(12, heads=2, landmarks=4, kernel=5).double()
    tokens = torch.randn(1, 11, 12, dtype=torch.double, requires_grad=True)
    weight = torch.randn(11, 12, dtype=torch.double)
    variants = (
        lambda: (layer(tokens)[0] * weight).sum(),
        lambda: (spelled_out(layer, tokens[0]) * weight).sum(),
        lambda: (torch.cat([layer.row(tokens, place) for place in range(11)]) * weight).sum(),
    )
    ours, defined, rows = (torch.autograd.grad(run(), [tokens, *layer.parameters()]) for run in variants)
    torch.testing.assert_close(ours, defined)
    torch.testing.assert_close(rows, defined)


@pytest.mark.parametrize("n", [46, 61, 241, 256, 271, 286, 1021, 1036, 4096, 7936])
def test_float32_gradients_are_right_where_the_two_dimensional_convolution_s_are_not(n: int) -> None:
    torch.manual_seed(0)
    layer = NystromAttention(16, heads=2, landmarks=1)
    tokens, weight = torch.randn(1, n, 16), torch.randn(1, n, 16)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype).zero_grad()
        (layer(tokens.to(dtype)) * weight.to(dtype)).sum().backward()
        gradients.append(layer.mix.weight.grad.double())
    error = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    assert error < 1e-4


def test_scores_are_exact_attention_s() -> None:
    layer = NystromAttention(24, heads=3)
    tokens = torch.randn(2, 10, 24)
    query, key, _ = (part.unflatten(2, (3, 8)).transpose(1, 2) for part in layer.project(tokens).chunk(3, 2))
    expected = (query @ key.mT)[:, :, 4] / 8**0.5
    torch.testing.assert_close(layer.scores(tokens, 4), expected, rtol=1e-5, atol=1e-5)


def test_no_matrix_of_tokens_by_landmarks_is_kept() -> None:
    layer = NystromAttention(16, heads=2, landmarks=64)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(torch.randn(1, 64 * 64, 16))
    long = sum(size for size in kept.values() if size >= 64 * 64 * 4 * 2)
    assert long < 4096 * 4 * 16 * 12, (
        "twelve times the tokens; one matrix for each of two heads would be eight more each"
    )


def test_the_pseudo_inverse_converges_for_few_landmarks_and_stays_float32() -> None:
    matrix = torch.softmax(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 4, 3)
    exact = matrix.double()
    inverse = times_pseudo_inverse(exact, torch.eye(6, dtype=torch.double).expand(2, 3, 6, 6), 15)
    torch.testing.assert_close(exact @ inverse @ exact, exact, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        few, wide = matrix.bfloat16(), matrix[..., :2].bfloat16()
        torch.testing.assert_close(
            times_pseudo_inverse(few, wide, 6), times_pseudo_inverse(few.float(), wide.float(), 6)
        )


@pytest.mark.parametrize("keep_little", [False, True])
def test_products_with_the_pseudo_inverse_are_those_with_its_matrix(keep_little: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.softmax(torch.randn(2, 3, 40, 40, generator=generator, dtype=torch.double) * 4, 3).requires_grad_()
    right = torch.randn(2, 3, 40, 5, generator=generator, dtype=torch.double).requires_grad_()
    inverse = matrix.mT / (matrix.sum(3).amax([1, 2]) * matrix.sum(2).amax([1, 2]))[:, None, None, None]
    one = torch.eye(40, dtype=torch.double)
    for _ in range(6):  # as the reference writes it
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product)))
    answers = times_pseudo_inverse(matrix, right, 6, keep_little)
    rows = row_times_pseudo_inverse(right.mT[:, :, :1], matrix, 6, keep_little)
    torch.testing.assert_close(answers, inverse @ right)
    torch.testing.assert_close(rows, right.mT[:, :, :1] @ inverse)
    weights = torch.randn(answers.shape, generator=generator, dtype=torch.double)
    ours = torch.autograd.grad((answers * weights).sum() + rows.square().sum(), [matrix, right])
    plain = (inverse @ right * weights).sum() + (right.mT[:, :, :1] @ inverse).square().sum()
    torch.testing.assert_close(ours, torch.autograd.grad(plain, [matrix, right]))


def test_dropout_acts_in_training_only() -> None:
    layer = NystromAttention(16, heads=2, landmarks=4, dropout=0.5)
    tokens = torch.randn(1, 9, 16)
    assert not torch.equal(layer(tokens), layer(tokens))
    layer.eval()
    torch.testing.assert_close(layer(tokens), layer(tokens), rtol=0, atol=0)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must divide"):
        NystromAttention(10, heads=4)


@pytest.mark.parametrize("iterations", [0, 9])
def test_iterations_that_leave_nothing_of_float32_are_refused(iterations: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 to 8, got {iterations}"):
        NystromAttention(16, heads=4, iterations=iterations)
