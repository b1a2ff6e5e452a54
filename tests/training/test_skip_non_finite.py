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


def run(loss: Loss, patience: int = 10, labels: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[list[Tensor], list[int]]:
    """All weights, the anchor's too, after every iteration, and the number of the anchor's steps."""
    torch.manual_seed(0)
    network = ASMIL(6, 2, hidden_dim=16, tokens=3)
    anchor = Anchor(network, momentum=0.5)
    bags = [{"image": torch.randn(6, 9), "label": label} for label in labels]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(bags)),
        prepare_batch=prepare_bag_batch,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-2),
        loss_function=loss,
        train_handlers=[GradientClip(network, 5.0), SkipNonFinite(network, patience), anchor],
    )
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
