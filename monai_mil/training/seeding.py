"""The same random numbers in an epoch, whether training began before it or was resumed in it, and whoever loads it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.transforms import Compose
from monai.utils import set_determinism
from torch import Tensor
from torch.utils.data import DataLoader


class EpochSeeder:
    """Seeds every generator at the start of an epoch: Python, numpy, torch, the order of the bags and their transforms.

    The random transforms of a bag depend on the seed, the epoch and the bag alone, and the network's random numbers not
    on the loader: an epoch is the same without worker processes, with any number of them, and with persistent ones.
    Processes of a distributed run get different numbers, epoch by epoch the same.

    Args:
        seed: of the whole run; epoch ``e`` of process ``r`` uses ``seed + 1000 e + r``.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # Persistent workers hold copies of the data set from the first epoch on: they share this number, no other.
        self._of_epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def attach(self, trainer: Engine) -> None:
        """Seed every epoch of ``trainer``."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        """Seed the epoch that has just started."""
        seed = self.seed + 1000 * trainer.state.epoch + idist.get_rank()
        self._of_epoch.fill_(seed)
        set_determinism(seed)
        loader = trainer.state.dataloader
        dataset = getattr(loader, "dataset", None)
        set_rnd(dataset, seed)
        transform = getattr(dataset, "transform", None)
        if dataset is not None and transform is not None and not isinstance(transform, _SeededByItem):
            dataset.transform = _SeededByItem(transform, self._of_epoch)
        if isinstance(loader, DataLoader):
            _seed_loader(loader)


class _SeededByItem(Compose):
    """A data set's transforms, their random ones seeded anew for every item."""

    def __init__(self, transform: Callable[[Any], Any], seed: Tensor) -> None:
        own = transform if type(transform) is Compose else Compose([transform])
        super().__init__(own.transforms, own.map_items, own.unpack_items, own.log_stats, own.lazy, own.overrides)
        self.seed = seed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        of_item = np.random.SeedSequence([int(self.seed), _identity(args[0])])
        set_rnd(self.transforms, int(of_item.generate_state(1)[0]))
        return super().__call__(*args, **kwargs)


def _identity(item: Any) -> int:
    """A number for an item, the same in every process: of its name, else of all it holds."""
    if isinstance(item, Mapping):
        name = item.get("scan_id") or item.get("slide_id") or item.get("patient_id")
        parts = [name] if isinstance(name, str) else [*item.values()]
    else:
        parts = [item]
    return zlib.crc32(b"\0".join(_as_bytes(part) for part in parts))


def _as_bytes(part: Any) -> bytes:
    return np.ascontiguousarray(part).tobytes() if isinstance(part, Tensor | np.ndarray) else str(part).encode()


def _seed_loader(loader: DataLoader[Any]) -> None:
    """Give the loader's own draws generators of their own.

    A loader draws a seed for its workers, unless they persist, and one for the order, with workers before the first
    batch is asked for and else with it: what the network draws next would depend on all that.
    """
    loader.generator = _generator()
    if hasattr(loader.sampler, "generator"):
        loader.sampler.generator = _generator()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
