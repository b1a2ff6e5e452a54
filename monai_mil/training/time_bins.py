"""The time bins of a survival network as a file beside its weights: what its outputs mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from monai_mil.errors import SettingsError
from monai_mil.files import replacing


class TimeBinsSaver:
    """Writes the edges of the time bins when training starts, for evaluation and inference to read.

    Args:
        edges: as :func:`monai_mil.losses.time_bins` fits them, in the cohort's unit of time.
        path: the file, ``time_bins.json`` beside the model.
    """

    def __init__(self, edges: Sequence[float], path: str | Path) -> None:
        self.edges = [float(edge) for edge in edges]
        self.path = Path(path)

    def attach(self, engine: Any) -> None:
        """Write when ``engine`` starts; of several processes the first one does."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self._write())

    def _write(self) -> None:
        if idist.get_rank() == 0:
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"edges": self.edges}, indent=4) + "\n", encoding="utf-8")


def read_time_bins(path: str | Path) -> list[float]:
    """The edges that :class:`TimeBinsSaver` wrote: as many as the network has outputs, and one.

    Raises:
        SettingsError: the file is missing or holds no edges.
    """
    try:
        edges = [float(edge) for edge in json.loads(Path(path).read_text(encoding="utf-8"))["edges"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"time bins '{path}': cannot be read ({error!r}); the file lies beside the model that survival.json "
            "trained: give that model, or the file with --time_bins_file"
        ) from error
    if len(edges) < 3 or any(later <= earlier for earlier, later in pairwise(edges)):
        raise SettingsError(f"time bins '{path}': {edges} are no three or more rising edges; train survival.json anew")
    return edges
