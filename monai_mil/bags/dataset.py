"""A dataset for prediction: a case that cannot be read is reported and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from monai_mil.errors import CohortError, MonaiMILError

logger = logging.getLogger(__name__)


class ResilientDataset(IterableDataset):
    """Yields the transformed items of ``data`` in order and leaves out those whose file is unusable.

    A failed item is logged when it is met and kept in ``failures``; ``raise_failures`` makes the program end with an
    error once the rest is done. Use it with ``num_workers=0``: reading is already prefetched by the slide reader, and
    what a worker process keeps in ``failures`` is lost.

    Args:
        data: items as ``Cohort.datalist`` gives them.
        transform: what makes a network's input of an item.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any]) -> None:
        self.data = data
        self.transform = transform
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        self.failures.clear()
        for item in self.data:
            try:
                transformed = self.transform(dict(item))
            except Exception as error:
                cause = _user_error(error)
                if cause is None:
                    raise
                self.failures.append(str(cause))
                logger.error("%s", cause)
                continue
            yield transformed

    def raise_failures(self) -> None:
        """Raise a CohortError that lists every item left out, if any was."""
        if self.failures:
            listed = "\n  ".join(self.failures)
            raise CohortError(
                f"{len(self.failures)} of {len(self.data)} cases failed, the others are done:\n  {listed}"
            )


def _user_error(error: BaseException | None) -> MonaiMILError | None:
    """The input error behind ``error``, which MONAI's transforms wrap, or None where the program itself is at fault."""
    while error is not None and not isinstance(error, MonaiMILError):
        error = error.__cause__
    return error
