"""Attention between epochs: the divergence, its storage, and the curve a validation leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Lambdad, Transform

from monai_mil.bags import collate_bags
from monai_mil.metrics import effective_tiles, jensen_shannon
from monai_mil.metrics.attention_stability import pack_attention, unpack_attention
from monai_mil.networks import ABMIL, MeanPooling, MILNetwork
from monai_mil.savers import AttentionStability
from monai_mil.training import Checkpointer, FullOutputInferer, UnpackOutputd, prepare_bag_batch


def random_shares(n: int, seed: int, spread: float = 1.0) -> np.ndarray:
    scores = spread * np.random.default_rng(seed).standard_normal(n)
    return np.exp(scores) / np.exp(scores).sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_divergence_is_symmetric_and_between_0_and_log_2(seed: int) -> None:
    first, second = random_shares(50, seed, 4), random_shares(50, seed + 100, 4)
    value = jensen_shannon(first, second)
    assert 0 < value < math.log(2)
    assert value == pytest.approx(jensen_shannon(second, first), abs=1e-15)


def test_the_divergence_is_0_of_equals_alone_and_log_2_of_those_that_share_nothing() -> None:
    share = random_shares(20, 0)
    assert jensen_shannon(share, share) == 0
    assert jensen_shannon(share, np.roll(share, 1)) > 1e-3
    assert jensen_shannon([1, 1, 0, 0], [0, 0, 3, 1]) == pytest.approx(math.log(2))
    assert jensen_shannon([1.0], [1.0]) == 0


def test_the_divergence_is_scipy_s_distance_squared() -> None:
    from scipy.spatial.distance import jensenshannon

    first, second = random_shares(30, 1), random_shares(30, 2)
    assert jensen_shannon(first, second) == pytest.approx(jensenshannon(first, second) ** 2, rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "other", "what"),
    [
        ([1, 2], [1, 2, 3], "over 2 and 3 instances"),
        ([1, -1], [1, 1], "not negative"),
        ([1, math.nan], [1, 1], "finite"),
        ([0, 0], [1, 1], "not all 0"),
        ([], [], "not all 0"),
    ],
)
def test_what_is_no_distribution_is_refused(weights: list, other: list, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        jensen_shannon(weights, other)


def test_attention_on_k_tiles_alike_lies_on_k_effective_tiles() -> None:
    assert effective_tiles(np.ones(1000)) == pytest.approx(1000)
    assert effective_tiles([0, 0, 1]) == 1
    assert effective_tiles([1, 1, 1, 0, 0]) == pytest.approx(3)


@pytest.mark.parametrize(("n", "spread"), [(1, 1), (50, 1), (100_000, 3), (1_000_000, 1)])
def test_half_precision_loses_less_than_stable_attention_moves(n: int, spread: float) -> None:
    """Epochs of ASMIL differ by about 1e-4."""
    share = random_shares(n, 3, spread)
    stored = pack_attention(share)
    assert stored.dtype == np.float16
    assert jensen_shannon(unpack_attention(stored), share) < 1e-6


def bags(count: int = 5) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.randn(4, 6 + i, generator=generator), "label": i % 2, "slide_id": f"s{i}"} for i in range(count)
    ]


def evaluator(
    items: list[dict[str, object]], network: MILNetwork, handler: AttentionStability, unpack: Transform | None = None
) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        postprocessing=unpack or UnpackOutputd("pred"),
        val_handlers=[handler],
    )


def scramble(network: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def attention_of(network: MILNetwork, items: list[dict[str, object]]) -> list[np.ndarray]:
    with torch.no_grad():
        return [network(item["image"][None], return_dict=True)["attention"][0].mean(0).numpy() for item in items]


def test_the_curve_is_the_mean_divergence_between_epochs(tmp_path: Path) -> None:
    items, network = bags(), ABMIL(4, 2, hidden_dim=8, attention_dim=4).eval()
    handler = AttentionStability(tmp_path)
    run = evaluator(items, network, handler)
    seen = []
    for epoch in (1, 2, 3):
        run.run(epoch)
        seen.append(attention_of(network, items))
        assert ("attention_jsd" in run.state.metrics) == (epoch > 1)
        scramble(network, epoch)
    epochs = json.loads((tmp_path / "attention_stability.json").read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[0]["jsd"] is None
    for index in (1, 2):
        expected = np.mean([jensen_shannon(a, b) for a, b in zip(seen[index - 1], seen[index], strict=True)])
        assert expected > 1e-4
        assert epochs[index]["jsd"] == pytest.approx(expected, rel=1e-2)
        assert epochs[index]["effective_tiles"] == pytest.approx(np.mean([effective_tiles(a) for a in seen[index]]))
    assert run.state.metrics["attention_jsd"] == epochs[2]["jsd"]
    assert epochs[2]["cases"] == 5
    assert (tmp_path / "attention_stability.png").read_bytes()[:4] == b"\x89PNG"


def test_attention_that_stands_still_does_not_diverge(tmp_path: Path) -> None:
    handler = AttentionStability(tmp_path)
    run = evaluator(bags(), ABMIL(4, 2, hidden_dim=8, attention_dim=4).eval(), handler)
    run.run(1)
    run.run(2)
    assert handler.history[1].jsd < 1e-6


def test_a_resumed_run_goes_on_with_the_curve(tmp_path: Path) -> None:
    items, network = bags(), ABMIL(4, 2, hidden_dim=8, attention_dim=4).eval()
    first = AttentionStability(tmp_path / "a")
    run = evaluator(items, network, first)
    run.run(1)
    checkpointer = Checkpointer(tmp_path / "ckpt", {"attention": first})
    checkpointer.save(run)
    scramble(network, 0)
    run.run(2)
    second = AttentionStability(tmp_path / "b")
    resumed = evaluator(items, network, second)
    Checkpointer(tmp_path / "ckpt", {"attention": second}, resume=True).load(resumed)
    resumed.run(2)
    assert second.history[1] == first.history[1]
    assert len(second.history) == 2
    resumed.run(2)
    assert [epoch.epoch for epoch in second.history] == [1, 2]


def test_a_case_whose_instances_changed_is_refused(tmp_path: Path) -> None:
    items, network = bags(2), ABMIL(4, 2, hidden_dim=8, attention_dim=4).eval()
    run = evaluator(items, network, AttentionStability(tmp_path))
    run.run(1)
    items[1]["image"] = items[1]["image"][:, :5]
    with pytest.raises(ValueError, match="case 's1' had 7 instances and now has 5"):
        run.run(2)


def test_a_network_without_attention_is_refused(tmp_path: Path) -> None:
    keep_logits = Lambdad("pred", lambda output: output["logits"])
    run = evaluator(bags(2), MeanPooling(4, 2, hidden_dim=8), AttentionStability(tmp_path), keep_logits)
    with pytest.raises(ValueError, match="no 'attention'"):
        run.run(1)
