"""The time bins of a survival network as a file beside its weights: which times its outputs stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_mil.errors import SettingsError
from monai_mil.files import parse_json, replacing


class TimeBinsSaver:
    """Writes the edges of the time bins when a validation ends, just before the model, for evaluation and inference.

    Not sooner, so that a run which dies before it has a model leaves an older one its bins. Give it to
    :class:`Checkpointer` too: bins are fitted to the cohort, and a run is not resumed with others than it began with.

    Args:
        edges: as :func:`monai_mil.losses.time_bins` fits them, in the cohort's unit of time.
        path: the file, ``time_bins.json`` beside the model.
    """

    def __init__(self, edges: Sequence[float], path: str | Path) -> None:
        self.edges = [float(edge) for edge in edges]
        self.path = Path(path)

    def attach(self, evaluator: Engine) -> None:
        """Write at the end of an epoch of ``evaluator``; of several processes the first one does."""
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def state_dict(self) -> dict[str, Any]:
        """The edges."""
        return {"edges": self.edges}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that they are the same.

        Raises:
            SettingsError: they differ.
        """
        if state["edges"] != self.edges:
            raise SettingsError(
                f"the run to be resumed has the time bins {state['edges']}, this one {self.edges}: the follow-up of "
                f"training patients or --time_bins has changed; give the old ones (--time_edges '{state['edges']}') or "
                "begin anew in another --ckpt_dir"
            )

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
        edges = parse_json(Path(path).read_text(encoding="utf-8"))["edges"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"time bins '{path}': cannot be read ({error!r}); the file lies beside the model that survival.json "
            "trained: give that model, or the file with --time_bins_file"
        ) from error
    if not _rises(edges):
        raise SettingsError(f"time bins '{path}': {edges} are no three or more rising edges; train survival.json anew")
    return [float(edge) for edge in edges]


def _rises(edges: Any) -> bool:
    """Whether it is a list of three or more finite numbers, each above the one before."""
    if not isinstance(edges, list) or len(edges) < 3:
        return False
    numbers = all(type(edge) in (int, float) and math.isfinite(edge) for edge in edges)
    return numbers and all(earlier < later for earlier, later in pairwise(edges))
