"""Training at a small size first, and at larger ones later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events

from monai_mil.training.distributed import unwrap


class ProgressiveResizing:
    """Sets the ``size`` of a network by the epoch: a 3D network learns quickly on small volumes, then goes on.

    Attach it to the trainer. A training that goes on from a checkpoint goes on at the size of its epoch. The last size
    is that of the network's answers, so give the network itself that one.

    Args:
        network: one with a ``size``, such as :class:`monai_mil.networks.VolumeClassifier`.
        sizes: the epoch from which on, counted from 1, and slices, rows and columns; in a config the epochs are texts.

    Raises:
        ValueError: no size is that of the first epoch.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import VolumeClassifier
        >>> from monai_mil.training import ProgressiveResizing
        >>> network = VolumeClassifier(torch.nn.Conv3d(1, 8, 3), features=8, num_classes=1)
        >>> resizing = ProgressiveResizing(network, {1: (16, 64, 64), 10: (32, 128, 128)})
        >>> resizing.size_of(9), resizing.size_of(10)
        ([16, 64, 64], [32, 128, 128])
    """

    def __init__(self, network: Any, sizes: Mapping[Any, Sequence[int]]) -> None:
        self.network = network
        self.sizes = {int(epoch): [int(side) for side in size] for epoch, size in sizes.items()}
        if 1 not in self.sizes:
            raise ValueError(f"sizes begin with epoch {min(self.sizes, default=0)}; give one for epoch 1")

    def attach(self, engine: Engine) -> None:
        """Set the size whenever an epoch of the trainer begins."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the size of the engine's epoch."""
        unwrap(self.network).size = self.size_of(engine.state.epoch)

    def size_of(self, epoch: int) -> list[int]:
        """Slices, rows and columns in an epoch, counted from 1."""
        return self.sizes[max(first for first in self.sizes if first <= epoch)]
