"""How a method is trained: its optimiser, the way of the learning rate, how long, and which epoch is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR

from monai_mil.metrics import LogLoss
from monai_mil.training.scores import Mode

Schedule = Literal["constant", "cosine", "steps"]
Selection = Literal["metric", "loss"]


@dataclass(frozen=True)
class Recipe:
    """What a paper, or a comparison, says of the training of a method.

    Attributes:
        optimizer: a class of ``torch.optim`` by its name.
        lr: learning rate at the start.
        weight_decay: as the optimiser means it.
        max_epochs: of the training.
        patience: validations without improvement after which it ends; None for all epochs.
        schedule: the learning rate stays (``"constant"``), falls along half a cosine (``"cosine"``), or is multiplied
            by ``gamma`` before each of ``milestones`` (``"steps"``), counted in epochs.
        lowest_lr: where the cosine ends.
        milestones: see ``schedule``.
        gamma: likewise.
        betas: of an optimiser of Adam's kind, where they are not its defaults.
        momentum: of SGD, where it has one; Nesterov's.
        select: keep the epoch with the best ``"metric"`` (AUROC, or concordance) or with the lowest ``"loss"``.
        source: where these numbers are published, and what of it is left out here.

    Raises:
        ValueError: there is no such optimiser, schedule or selection.

    Examples:
        >>> from monai_mil.training import Recipe
        >>> recipe = Recipe("Adam", lr=1e-4, weight_decay=1e-5, max_epochs=100, schedule="cosine")
        >>> recipe.patience, recipe.mode
        (100, 'max')
    """

    optimizer: str
    lr: float
    weight_decay: float
    max_epochs: int
    patience: int | None = None
    schedule: Schedule = "constant"
    lowest_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    select: Selection = "metric"
    source: str = ""

    def __post_init__(self) -> None:
        if not hasattr(torch.optim, self.optimizer):
            raise ValueError(f"torch.optim has no optimizer '{self.optimizer}'")
        for value, choices in ((self.schedule, get_args(Schedule)), (self.select, get_args(Selection))):
            if value not in choices:
                raise ValueError(f"a recipe knows {', '.join(choices)}, and no '{value}'")
        if self.patience is None:
            object.__setattr__(self, "patience", self.max_epochs)

    @property
    def optimizer_class(self) -> Callable[..., Optimizer]:
        """Makes the optimiser of ``params``, ``lr`` and ``weight_decay``."""
        options: dict[str, Any] = {} if self.betas is None else {"betas": tuple(self.betas)}
        if self.momentum is not None:
            options |= {"momentum": self.momentum, "nesterov": True}
        return partial(getattr(torch.optim, self.optimizer), **options)

    def lr_scheduler(self, optimizer: Optimizer, T_max: int) -> LRScheduler:  # noqa: N803
        """The schedule, a step an epoch.

        Args:
            optimizer: whose learning rate it is.
            T_max: epochs of the training, as torch calls them.
        """
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, T_max, self.lowest_lr)
        if self.schedule == "steps":
            return MultiStepLR(optimizer, list(self.milestones), self.gamma)
        return ConstantLR(optimizer, factor=1.0)

    @property
    def mode(self) -> Mode:
        """Whether what is selected by is to be high or low."""
        return "min" if self.select == "loss" else "max"

    def is_better(self, current: float, best: float) -> bool:
        """Whether an epoch is to be kept in place of the best so far."""
        return current < best if self.select == "loss" else current > best

    def key_metric(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What the evaluator selects by: the metrics given, or the validation loss."""
        return {"val_loss": LogLoss(highest=1.0)} if self.select == "loss" else dict(metrics)

    def further_metrics(self, metrics: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
        """What the evaluator reports besides: the metrics too where the loss selects."""
        return {**metrics, **further} if self.select == "loss" else dict(further)
