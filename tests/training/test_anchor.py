"""The anchor in MONAI's own trainer: it moves by its formula, once a step, and survives what training survives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_mil.bags import collate_bags
from monai_mil.losses import AnchorDivergence, BagCrossEntropy, MILLoss
from monai_mil.networks import ABMIL, ASMIL, CLAM_SB, DSMIL, MeanPooling, TransMIL
from monai_mil.networks.blocks.attention_network import AttentionNetwork
from monai_mil.training import (
    Anchor,
    AnchorInferer,
    Checkpointer,
    EpochSeeder,
    FullOutputInferer,
    TemporalEnsemble,
    prepare_bag_batch,
)
from tests.processes import run_together

NETWORKS: dict[str, Callable[[], AttentionNetwork]] = {
    "ABMIL": lambda: ABMIL(6, 2, 16, 8, dropout=0.2),
    "CLAM_SB": lambda: CLAM_SB(6, 2, 16, 8, sampled=0),
    "DSMIL": lambda: DSMIL(6, 2, query_dim=8),
    "TransMIL": lambda: TransMIL(6, 2, hidden_dim=16, heads=2),
    "ASMIL": lambda: ASMIL(6, 2, hidden_dim=16, tokens=3),
}


def bags(count: int = 8) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.randn(6, 5 + index, generator=generator), "label": torch.tensor(index % 2)}
        for index in range(count)
    ]


def trainer_of(network: nn.Module, anchor: Anchor | None, **options: Any) -> SupervisedTrainer:
    loss = MILLoss({"bag": BagCrossEntropy(), "anchor": AnchorDivergence()}, {"anchor": float(anchor is not None)})
    return SupervisedTrainer(
        device=torch.device("cpu"),
        train_data_loader=DataLoader(Dataset(bags()), batch_size=2, collate_fn=collate_bags),
        network=network,
        loss_function=loss,
        inferer=FullOutputInferer() if anchor is None else AnchorInferer(anchor),
        prepare_batch=prepare_bag_batch,
        decollate=False,
        **{
            "max_epochs": 2,
            "optimizer": torch.optim.Adam(network.parameters(), 1e-2),
            "train_handlers": [EpochSeeder(0)] if anchor is None else [EpochSeeder(0), anchor],
        }
        | options,
    )


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_anchor_moves_by_the_formula_behind_every_step(name: str) -> None:
    network = NETWORKS[name]()
    anchor = Anchor(network, momentum=0.9)
    expected = copies(anchor.network)
    trainer = trainer_of(network, anchor)

    @trainer.on(Events.ITERATION_COMPLETED)
    def average() -> None:
        online = dict(network.named_parameters())
        for key, value in expected.items():
            value.mul_(0.9).add_(online[key].detach(), alpha=0.1)

    start = copies(anchor.network)
    trainer.run()
    assert anchor.steps == 8
    for key, value in anchor.network.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, start[key]) for key, value in anchor.network.named_parameters())


def test_with_constant_weights_it_follows_the_closed_form() -> None:
    network = ABMIL(6, 2, 16, 8)
    anchor = Anchor(network, momentum=0.99)
    start = copies(anchor.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    for _ in range(50):
        anchor.update()
    online = dict(network.named_parameters())
    for key, value in anchor.network.named_parameters():
        closed = 0.99**50 * start[key] + (1 - 0.99**50) * online[key].detach()
        torch.testing.assert_close(value, closed, rtol=0, atol=1e-6)


def test_it_has_no_gradient_and_is_no_part_of_the_network_or_its_optimiser() -> None:
    network = ASMIL(6, 2, hidden_dim=16, tokens=3)
    keys = set(network.state_dict())
    anchor = Anchor(network)
    trainer = trainer_of(network, anchor)
    trainer.run()
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for parameter in anchor.network.parameters():
        assert parameter.grad is None
        assert id(parameter) not in trained
    assert set(network.state_dict()) == keys
    assert set(torch.jit.script(network.eval()).state_dict()) == keys


@pytest.mark.parametrize(("accumulation_steps", "expected"), [(1, 4), (2, 2), (3, 2), (8, 1)])
def test_accumulated_gradients_make_one_step(accumulation_steps: int, expected: int) -> None:
    network = ABMIL(6, 2, 16, 8)
    anchor = Anchor(network)
    trainer_of(network, anchor, max_epochs=1, accumulation_steps=accumulation_steps).run()
    assert anchor.steps == expected


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_amp_skips_is_none(fused: bool) -> None:
    network = ABMIL(6, 2, 16, 8)
    anchor, scaler = Anchor(network, momentum=0.5), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2, fused=fused)
    seen = []

    def step(engine: Engine, overflows: bool) -> None:
        optimizer.zero_grad()
        scaler.scale(network(torch.randn(1, 6, 9)).square().sum()).backward()
        if overflows:
            network.hidden.weight.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        seen.append(anchor.steps)

    engine = Engine(step)
    engine.optimizer = optimizer
    anchor.attach(engine)
    engine.run([False, True, False])
    assert seen == [1, 1, 2]
    assert all(torch.isfinite(parameter).all() for parameter in anchor.network.parameters())


def test_another_run_does_not_move_it_twice_a_step() -> None:
    network = ABMIL(6, 2, 16, 8)
    anchor = Anchor(network)
    trainer = trainer_of(network, anchor, max_epochs=1)
    trainer.run()
    trainer.state.max_epochs = 2
    trainer.run()
    assert anchor.steps == 8
    trainer.optimizer.step()
    assert anchor.steps == 8, "it follows the trainer, not the optimiser for good"


def test_weights_loaded_before_the_first_step_are_where_it_begins() -> None:
    network, pretrained = ABMIL(6, 2, 16, 8), ABMIL(6, 2, 16, 8)
    anchor = Anchor(network, momentum=1.0)
    trainer = trainer_of(network, anchor)
    trainer.add_event_handler(Events.STARTED, lambda: network.load_state_dict(pretrained.state_dict()))
    trainer.run()
    expected = dict(pretrained.named_parameters())
    for key, value in anchor.network.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


def test_while_it_warms_up_it_follows_and_does_not_count() -> None:
    network = ABMIL(6, 2, 16, 8)
    anchor = Anchor(network, momentum=0.5, warmup_steps=4)
    start = copies(anchor.network)
    trainer = trainer_of(network, anchor)
    told: list[tuple[float, bool]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: told.append((anchor.weight, bool(trainer.state.output["pred"]["anchor_weight"].any()))),
    )
    trainer.run()
    assert [counted for _, counted in told] == [False] * 4 + [True] * 4
    assert any(not torch.equal(value, start[key]) for key, value in anchor.network.named_parameters())


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    results = []
    for folder, stages in (("whole", (4,)), ("resumed", (2, 4))):
        for epochs in stages:
            torch.manual_seed(0)
            network = ASMIL(6, 2, hidden_dim=16, tokens=3)
            anchor, optimizer = Anchor(network, momentum=0.9), torch.optim.Adam(network.parameters(), 1e-2)
            trainer = trainer_of(network, anchor, max_epochs=epochs, optimizer=optimizer)
            objects = {"network": network, "optimizer": optimizer, "anchor": anchor}
            Checkpointer(tmp_path / folder, objects, resume=True).attach(trainer)
            trainer.run()
        results.append((copies(network), copies(anchor.network), anchor.steps))
    assert results[0][2] == results[1][2] == 16
    for whole, resumed in zip(results[0][:2], results[1][:2], strict=True):
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.usefixtures("fork_server")
def test_two_processes_have_the_same_anchor() -> None:
    result = run_together(Path(__file__).with_name("run_anchor_distributed.py"))
    assert result.returncode == 0, result.stderr
    found = re.findall(r"rank (\d) steps (\d+) anchor (\S+) moved (\S+) off (\S+)", result.stdout)
    (first, *one), (second, *other) = sorted(found)
    assert (first, second) == ("0", "1")
    assert one == other
    assert one[0] == "6", "three epochs of two steps"
    assert float(one[2]) > 1e-3
    assert float(one[3]) < 1e-6


class Counted(ABMIL):
    """Has buffers beside the modules of its scores."""

    score_parameters = (*ABMIL.score_parameters, "seen")

    def __init__(self) -> None:
        super().__init__(6, 2, 16, 8)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))


def test_buffers_are_copied() -> None:
    network = Counted()
    anchor = Anchor(network)
    network.seen += 7
    anchor.update()
    assert anchor.network.seen == 7


def test_a_float32_anchor_of_a_half_precision_network_still_moves() -> None:
    network = ABMIL(6, 2, 16, 8)
    network.bfloat16()
    anchor = Anchor(network, momentum=0.999)
    before = copies(anchor.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)
    anchor.update()
    for key, value in anchor.network.named_parameters():
        moved = value - before[key]
        assert ((moved > 3e-4) & (moved < 7e-4)).all()


def test_the_inferer_adds_the_anchor_s_scores_to_the_whole_output() -> None:
    network = ABMIL(6, 2, 16, 8).eval()
    anchor = Anchor(network)
    image, mask = torch.randn(2, 6, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 4:] = False
    output = AnchorInferer(anchor)(image, network, mask=mask, positions=torch.zeros(2, 9))
    plain = FullOutputInferer()(image, network, mask=mask, positions=torch.zeros(2, 9))
    assert output.keys() == plain.keys() | {"anchor_logits", "anchor_weight"}
    torch.testing.assert_close(output["anchor_logits"], output["attention_logits"].detach())
    assert output["anchor_weight"].tolist() == [1.0, 1.0]
    assert not output["anchor_logits"].requires_grad


def test_a_network_without_attention_and_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="MeanPooling has no attention scores"):
        Anchor(MeanPooling(6, 2))
    for options in ({"momentum": 1.5}, {"warmup_steps": -1}):
        with pytest.raises(ValueError, match="momentum must be in"):
            Anchor(ABMIL(6, 2), **options)


def test_an_epoch_wise_anchor_moves_at_the_end_of_an_epoch_and_counts_steps() -> None:
    network = ABMIL(6, 2, 16, 8)
    anchor = Anchor(network, momentum=0.5, every="epoch")
    trainer = trainer_of(network, anchor)
    expected, moved = copies(anchor.network), []

    @trainer.on(Events.ITERATION_COMPLETED)
    def still() -> None:
        moved.append(any(not torch.equal(value, expected[key]) for key, value in anchor.network.named_parameters()))

    @trainer.on(Events.EPOCH_COMPLETED)
    def average() -> None:
        online = dict(network.named_parameters())
        for key, value in expected.items():
            value.lerp_(online[key].detach(), 0.5)

    trainer.run()
    assert not any(moved)
    assert anchor.steps == 8
    for key, value in anchor.network.named_parameters():
        torch.testing.assert_close(value, expected[key])
    with pytest.raises(ValueError, match="every 'step' or 'epoch'"):
        Anchor(network, every="bag")  # type: ignore[arg-type]


def test_a_bag_s_own_attention_of_earlier_visits_is_remembered() -> None:
    network = ABMIL(6, 2, 16, 8)
    ensemble = TemporalEnsemble(network, momentum=0.6)
    image, mask = torch.randn(2, 6, 5), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    batch = MetaTensor(image, meta={"slide_id": ["a", "b"]})
    visits = [torch.randn(2, 1, 5) for _ in range(3)]
    targets, weights = [], []
    for scores in visits:
        targets.append(ensemble(batch, mask, {"attention_logits": scores}))
        weights.append(ensemble.weight)
    assert weights == [0.0, 1.0, 1.0]
    second = 0.6 * visits[0] + 0.4 * visits[1]
    for target, expected in ((targets[1], visits[0]), (targets[2], second)):
        torch.testing.assert_close(target[0], expected[0], rtol=0, atol=2e-3)
        torch.testing.assert_close(target[1, :, :3], expected[1, :, :3], rtol=0, atol=2e-3)
    again = TemporalEnsemble(network)
    again.load_state_dict(ensemble.state_dict())
    assert again.memory.keys() == {"a", "b"}
    assert again.memory["b"].shape == (1, 3)
    with pytest.raises(ValueError, match="bag 'a' has 4 instances, and had 5 before"):
        ensemble(batch[:, :, :4], mask[:, :4], {"attention_logits": visits[0][:, :, :4]})
    with pytest.raises(ValueError, match="knows bags by their names"):
        ensemble(image, mask, {"attention_logits": visits[0]})
