"""The same random numbers in an epoch, whether training began before it or was resumed in it."""

from __future__ import annotations

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.utils import set_determinism


class EpochSeeder:
    """Seeds every generator at the start of an epoch: Python, numpy, torch and the data set's random transforms.

    The transforms need it because without worker processes MONAI seeds them once, when the loader is built, so that
    they would differ after a resume. Processes of a distributed run get different numbers, epoch by epoch the same.

    Args:
        seed: of the whole run; epoch ``e`` of process ``r`` uses ``seed + 1000 e + r``.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, trainer: Engine) -> None:
        """Seed every epoch of ``trainer``."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        """Seed the epoch that has just started."""
        seed = self.seed + 1000 * trainer.state.epoch + idist.get_rank()
        set_determinism(seed)
        set_rnd(getattr(trainer.state.dataloader, "dataset", None), seed)
