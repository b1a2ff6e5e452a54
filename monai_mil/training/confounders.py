"""The first stage of IBMIL within a training: centres of clusters of the bags become the network's confounders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode
from torch import nn

from monai_mil.networks import IBMIL
from monai_mil.training.distributed import unwrap

logger = logging.getLogger(__name__)


class FillConfounders:
    """Cluster the training's bags after some epochs, once, and go on with the centres as :class:`IBMIL`'s confounders.

    Bags are clustered by direction, as in the released program: k-means of their vectors at length 1; a confounder is
    the mean of a cluster's vectors as they are. The program begins its second stage with new weights; here it goes on
    with those of the first. A network that has confounders, resumed or fine-tuned, keeps them.

    Args:
        network: an ``IBMIL``; a DDP wrapper is taken off.
        dataset: the training's, cases with ``image`` ``[d, n]``.
        after: epochs of the first stage.

    Raises:
        ValueError: the network has no confounders.
    """

    def __init__(self, network: nn.Module, dataset: Iterable[Mapping[str, Any]], after: int = 5) -> None:
        inner = unwrap(network)
        if not isinstance(inner, IBMIL):
            raise ValueError(f"{type(inner).__name__} has no confounders; this is for IBMIL")
        self.network = inner
        self.dataset = dataset
        self.after = after

    def attach(self, trainer: Engine) -> None:
        """Watch a trainer's epochs."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        """Fill the confounders if the first stage is over and nobody has."""
        if trainer.state.epoch <= self.after or bool(self.network.confounders.any()):
            return
        place = self.network.confounders.device
        with eval_mode(self.network):
            bags = [self.network(item["image"][None].to(place), return_dict=True)["bag"] for item in self.dataset]
        self.fill(torch.cat([torch.as_tensor(bag) for bag in bags]).cpu().numpy())
        if idist.get_rank() == 0:
            logger.info(
                "the second stage begins, with %d confounders of %d bags", len(self.network.confounders), len(bags)
            )

    def fill(self, bags: np.ndarray) -> None:
        """Make the confounders of the vectors of bags ``[m, d]``; fewer bags than confounders repeat themselves."""
        from sklearn.cluster import KMeans

        count = min(len(self.network.confounders), len(bags))
        unit = bags / np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-10)
        cluster = KMeans(count, n_init=10, random_state=0).fit_predict(unit)
        centres = np.stack([bags[cluster == each].mean(axis=0) for each in np.unique(cluster)])
        repeated = centres[np.arange(len(self.network.confounders)) % len(centres)]
        self.network.confounders.copy_(torch.from_numpy(repeated))


class MethodHandlers:
    """Attaches the handlers of a method to the trainer of a config, as one item of its ``train::handlers``.

    Args:
        handlers: of the method of choice, none of most.
    """

    def __init__(self, handlers: Iterable[Any]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        """Attach each."""
        for handler in self.handlers:
            handler.attach(engine)
