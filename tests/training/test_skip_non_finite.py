"""Steps that would spoil the weights, in MONAI's own trainer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_mil.networks import ASMIL
from monai_mil.training import Anchor, GradientClip, SkipNonFinite, prepare_bag_batch

Loss = Callable[[Tensor, Tensor], Tensor]


def infinite_of_the_third(pred: Tensor, label: Tensor) -> Tensor:
    return pred.square().sum() * (torch.inf if label.item() == 2 else 1.0)


def steep_at_the_third(pred: Tensor, label: Tensor) -> Tensor:
    """A finite loss without a finite gradient."""
    return (pred * 0).sqrt().sum() if label.item() == 2 else pred.square().sum()


class Scaled(SupervisedTrainer):
    """With the scaler that MONAI makes on a GPU, on the CPU."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.amp = True
        # A run begins with a scaler of MONAI's own, which does nothing here.
        self.add_event_handler(Events.STARTED, self._scale)

    def _scale(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


def trainer_of(
    network: nn.Module,
    loss: Loss,
    labels: tuple[int, ...],
    kind: type[SupervisedTrainer] = SupervisedTrainer,
    **options,
) -> SupervisedTrainer:
    """One epoch of one random bag for every label."""
    return kind(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([{"image": torch.randn(6, 9), "label": label} for label in labels])),
        prepare_batch=prepare_bag_batch,
        network=network,
        loss_function=loss,
        **options,
    )


def run(loss: Loss, patience: int = 10, labels: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[list[Tensor], list[int]]:
    """All weights, the anchor's too, after every iteration, and the number of the anchor's steps."""
    torch.manual_seed(0)
    network = ASMIL(6, 2, hidden_dim=16, tokens=3)
    anchor = Anchor(network, momentum=0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-2)
    handlers = [GradientClip(network, 5.0), SkipNonFinite(network, patience), anchor]
    trainer = trainer_of(network, loss, labels, optimizer=optimizer, train_handlers=handlers)
    weights, steps = [], []

    def note() -> None:
        weights.append(torch.cat([p.detach().flatten() for p in (*network.parameters(), *anchor.network.parameters())]))
        steps.append(anchor.steps)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return weights, steps


@pytest.mark.parametrize("loss", [infinite_of_the_third, steep_at_the_third])
def test_such_a_step_leaves_network_optimiser_and_anchor_as_they_are(loss: Loss) -> None:
    with pytest.warns(UserWarning, match=r"its step is left out \(1 so far\)"):
        weights, steps = run(loss)
    assert steps == [1, 2, 2, 3]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert torch.isfinite(weights[3]).all()


def test_a_run_that_does_nothing_else_is_ended() -> None:
    told = pytest.raises(FloatingPointError, match="not finite in 3 steps in a row; lower the learning rate")
    with pytest.warns(UserWarning, match=r"\(4 so far\)"), told:
        run(infinite_of_the_third, patience=3, labels=(0, 2, 2, 0, 2, 2, 2, 0))


def test_a_patience_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="patience must be at least 1"):
        SkipNonFinite(nn.Linear(1, 1), 0)


def run_scaled(
    loss: Loss, labels: tuple[int, ...], *, fused: bool = False, patience: int = 10, accumulation_steps: int = 1
) -> tuple[SkipNonFinite, list[float], list[bool], nn.Module]:
    """The handler, the scale and whether the weights had moved after every iteration under AMP, and the network."""
    torch.manual_seed(0)
    network = ASMIL(6, 2, hidden_dim=16, tokens=3)
    handler = SkipNonFinite(network, patience)
    options = {"train_handlers": [handler], "accumulation_steps": accumulation_steps}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=fused)
    trainer = trainer_of(network, loss, labels, Scaled, optimizer=optimizer, **options)
    scales, moved = [], []
    last = [parameter.detach().clone() for parameter in network.parameters()]

    def note() -> None:
        scales.append(trainer.scaler.get_scale())
        now = [parameter.detach().clone() for parameter in network.parameters()]
        moved.append(any(not torch.equal(*pair) for pair in zip(last, now, strict=True)))
        last[:] = now

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return handler, scales, moved, network


AMP = pytest.mark.filterwarnings("ignore:.*CUDA is not available")
ADAM = pytest.mark.parametrize("fused", [False, True])


@AMP
@ADAM
def test_under_amp_a_loss_that_is_no_number_is_told_and_the_scale_stays(fused: bool) -> None:
    with pytest.warns(UserWarning, match=r"its step is left out \(1 so far\)"):
        handler, scales, moved, network = run_scaled(infinite_of_the_third, (0, 1, 2, 3), fused=fused)
    assert moved == [True, True, False, True]
    assert scales == [1024.0] * 4
    assert handler.skipped == 1
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@AMP
@ADAM
def test_under_amp_a_run_that_does_nothing_else_is_ended(fused: bool) -> None:
    told = pytest.raises(FloatingPointError, match="not finite in 3 steps in a row")
    with pytest.warns(UserWarning, match=r"\(4 so far\)"), told:
        run_scaled(infinite_of_the_third, (0, 2, 2, 0, 2, 2, 2, 0), fused=fused, patience=3)


@AMP
@ADAM
def test_an_overflow_of_a_finite_loss_is_the_scaler_s_and_neither_counts_nor_ends_a_row(fused: bool) -> None:
    def loss(pred: Tensor, label: Tensor) -> Tensor:
        return steep_at_the_third(pred, label) if label.item() == 2 else infinite_at_1(pred, label)

    def infinite_at_1(pred: Tensor, label: Tensor) -> Tensor:
        return pred.square().sum() * (torch.inf if label.item() == 1 else 1.0)

    with pytest.warns(UserWarning, match=r"\(1 so far\)"):
        handler, scales, moved, _ = run_scaled(loss, (0, 2, 1, 2, 0, 1), fused=fused, patience=2)
    assert moved == [True, False, False, False, True, False]
    assert scales == [1024.0, 512.0, 512.0, 256.0, 256.0, 256.0]
    assert handler.skipped == 2
    with pytest.warns(UserWarning, match=r"\(1 so far\)"), pytest.raises(FloatingPointError, match="2 steps in a row"):
        run_scaled(loss, (0, 1, 2, 1), fused=fused, patience=2)


@AMP
def test_under_amp_one_such_loss_leaves_out_the_step_it_is_accumulated_into() -> None:
    with pytest.warns(UserWarning, match=r"\(1 so far\)"):
        handler, scales, moved, _ = run_scaled(infinite_of_the_third, (0, 1, 2, 0, 1, 0), accumulation_steps=2)
    assert moved == [False, True, False, False, False, True]
    assert scales == [1024.0] * 6
    assert handler.skipped == 1


@AMP
def test_under_amp_such_a_loss_of_another_process_leaves_the_scale_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_mil.training.skip_non_finite.idist.all_reduce", lambda value, op: 1.0)
    with pytest.warns(UserWarning, match=r"\(1 so far\)"):
        _, scales, moved, _ = run_scaled(steep_at_the_third, (0, 2, 1))  # its gradient has come from there
    assert moved == [True, False, True]
    assert scales == [1024.0] * 3
