"""Telling somebody, while a case is encoded, how many of its instances are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_told: ContextVar[Callable[[int, int], None] | None] = ContextVar("told", default=None)


@contextmanager
def watched(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Have ``tell`` called with the instances done and all of a case, whenever a batch of them is, in this thread.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.embedding import EmbedSlided, watched
        >>> from monai_mil.slides import write_pyramid
        >>> write_pyramid(folder / "S-1.tif", np.full((512, 512, 3), (180, 60, 140), np.uint8), mpp=0.5)
        >>> seen = []
        >>> with watched(lambda done, total: seen.append((done, total))):
        ...     item = EmbedSlided("image", "texture")({"image": folder / "S-1.tif"})
        >>> seen
        [(4, 4)]
    """
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


def tell_watcher(done: int, total: int) -> None:
    """Say that ``done`` of a case's ``total`` instances are encoded."""
    if (tell := _told.get()) is not None:
        tell(done, total)
