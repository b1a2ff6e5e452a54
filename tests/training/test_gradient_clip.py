"""Clipping in MONAI's own trainer: once for every step, of the whole gradient, in its own scale."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_mil.training import GradientClip

IMAGES = torch.tensor([[3.0, 0.0], [0.0, 4.0], [6.0, 8.0], [0.3, 0.4]])


def make_trainer(clip: float | None, accumulation_steps: int, optimizer: type = torch.optim.SGD, amp: bool = False):
    """A trainer whose gradient is the batch's image itself; returns it and its weight after every iteration."""
    network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(network.weight)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([{"image": image, "label": 0} for image in IMAGES])),
        network=network,
        optimizer=optimizer(network.parameters(), lr=1.0),
        loss_function=lambda pred, label: pred.sum(),
        train_handlers=[] if clip is None else [GradientClip(network, clip)],
        accumulation_steps=accumulation_steps,
        amp=amp,
    )
    weights = [network.weight.detach().clone()]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: weights.append(network.weight.detach().clone()))
    return trainer, weights


def updates(trainer: SupervisedTrainer, weights: list[Tensor]) -> Tensor:
    trainer.run()
    return -torch.cat(weights).diff(dim=0)


def test_long_gradients_are_shortened_and_short_ones_left() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.3, 0.4]])
    torch.testing.assert_close(updates(*make_trainer(1.0, 1)), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(updates(*make_trainer(None, 1)), IMAGES)


def test_accumulated_gradients_are_clipped_once_when_they_are_complete() -> None:
    sums = torch.stack([(IMAGES[0] + IMAGES[1]) / 2, (IMAGES[2] + IMAGES[3]) / 2])
    clipped = sums * (2.0 / sums.norm(dim=1, keepdim=True))
    moved = updates(*make_trainer(2.0, 2))
    assert (moved[[0, 2]] == 0).all()
    torch.testing.assert_close(moved[[1, 3]], clipped, rtol=1e-5, atol=1e-6)


def test_the_rest_of_an_epoch_that_steps_early_is_clipped_too() -> None:
    moved = updates(*make_trainer(0.1, 3))
    assert (moved[[0, 1]] == 0).all()
    torch.testing.assert_close(moved[[2, 3]].norm(dim=1), torch.tensor([0.1, 0.1]), rtol=1e-4, atol=1e-6)


class FusedSGD(torch.optim.SGD):
    """As torch's fused optimisers, takes AMP's scale off by itself, and does not step where a gradient overflowed."""

    _step_supports_amp_scaling = True

    def step(self, closure: object = None) -> None:
        if self.found_inf == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data -= parameter.grad / self.grad_scale


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, FusedSGD])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_scale_of_mixed_precision_does_not_count(optimizer: type, accumulation_steps: int) -> None:
    trainer, weights = make_trainer(1.0, accumulation_steps, optimizer, amp=True)

    @trainer.on(Events.STARTED)
    def scale() -> None:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)

    expected = updates(*make_trainer(1.0, accumulation_steps))
    torch.testing.assert_close(updates(trainer, weights), expected, rtol=1e-4, atol=1e-5)


def test_a_trainer_that_runs_again_clips_as_before_and_a_finished_one_leaves_the_optimiser_alone() -> None:
    trainer, weights = make_trainer(1.0, 1)
    trainer.run()
    trainer.state.max_epochs = 2
    trainer.run()
    assert torch.cat(weights).diff(dim=0).norm(dim=1).max() <= 1.0001
    trainer.network.weight.grad = torch.tensor([[30.0, 40.0]])
    before = trainer.network.weight.detach().clone()
    trainer.optimizer.step()
    torch.testing.assert_close(before - trainer.network.weight.detach(), torch.tensor([[30.0, 40.0]]))


def test_a_bound_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        GradientClip(nn.Linear(1, 1), 0.0)
