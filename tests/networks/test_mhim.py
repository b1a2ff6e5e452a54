"""MHIM-MIL against its equations: what a step hides, and how the teacher follows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.losses import TeacherConsistency
from monai_mil.networks import MHIMMIL


def network_of(**options: float) -> MHIMMIL:
    torch.manual_seed(0)
    return MHIMMIL(6, 3, hidden_dim=8, attention_dim=4, **{"dropout": 0.0, **options})


def rows_and_attention(network: MHIMMIL, features: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.relu(network.hidden(features))
    return rows, network.score(torch.relu(network.query(rows)))[:, 0]


@pytest.mark.parametrize("n", [1, 2, 9])
def test_evaluation_is_the_student_s_and_sees_all(n: int) -> None:
    network = network_of().eval()
    image = torch.randn(1, 6, n)
    output = network(image, return_dict=True)
    rows, scores = rows_and_attention(network, image[0].T)
    torch.testing.assert_close(output["attention_logits"][0, 0], scores)
    torch.testing.assert_close(output["logits"][0], network.classifier(scores.softmax(dim=0) @ rows))
    assert "teacher_bag" not in output


@pytest.mark.parametrize(("n", "hidden"), [(1, 0), (2, 1), (9, 5), (40, 20)])
def test_training_hides_a_random_share_and_the_student_reads_the_rest(n: int, hidden: int) -> None:
    network = network_of(masked_high=0.0)
    image, mask = torch.randn(1, 6, n + 3), torch.arange(n + 3)[None] < n
    output = network(image, mask, return_dict=True)
    seen = output["attention"][0, 0] > 0
    assert int(seen.sum()) == n - hidden
    assert not seen[n:].any()
    rows, scores = rows_and_attention(network, image[0, :, seen].T)
    torch.testing.assert_close(output["bag"][0], scores.softmax(dim=0) @ rows)
    again = network(image, mask, return_dict=True)["attention"][0, 0] > 0
    assert n < 9 or not torch.equal(again, seen)


def test_training_hides_some_of_what_the_teacher_attends_to_most() -> None:
    network = network_of(masked_random=0.0, masked_high=0.1, high_part=0.5)
    image = torch.randn(1, 6, 40)
    top = set(network.eval()(image, return_dict=True)["attention_logits"][0, 0].topk(8).indices.tolist())
    drawn = [network.train()(image, return_dict=True)["attention"][0, 0] == 0 for _ in range(3)]
    for hidden in drawn:
        assert int(hidden.sum()) == 4, "a tenth of all"
        assert set(hidden.nonzero().flatten().tolist()) <= top, "of the fifth that is attended to most"
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_the_teacher_follows_the_student_and_has_no_gradient() -> None:
    network = network_of(momentum=0.75)
    start = network.teacher_query_weight.clone()
    torch.testing.assert_close(start, network.query.weight.detach())
    with torch.no_grad():
        network.query.weight += 1
    output = network(torch.randn(1, 6, 5), return_dict=True)
    torch.testing.assert_close(network.teacher_query_weight, 0.75 * start + 0.25 * (start + 1))
    assert not output["teacher_bag"].requires_grad
    network.eval()(torch.randn(1, 6, 5))
    torch.testing.assert_close(network.teacher_query_weight, start + 0.25)


def test_consistency_is_the_cross_entropy_of_the_two_bags() -> None:
    bag, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    loss = TeacherConsistency(0.5)({"bag": bag, "teacher_bag": teacher}, torch.zeros(2))
    expected = -((teacher / 0.5).softmax(dim=1) * bag.softmax(dim=1).log()).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match="no teacher_bag"):
        TeacherConsistency()({"bag": bag}, torch.zeros(2))


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"masked_random": 1.0}, {"masked_high": -0.1}, {"high_part": 0.0}, {"momentum": 2.0}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MHIMMIL(6, 2, **wrong)
