"""Curves of attention stability as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_mil.files import replacing
from monai_mil.metrics import EpochStability


def draw_stability(runs: Mapping[str, Sequence[EpochStability]], path: Path) -> Path:
    """Draw the curves of one or several runs: divergence above, effective tiles below, over the epochs.

    The divergence is on a logarithmic scale where it is never 0: an anchor divides it by ten or more.

    Args:
        runs: histories by name.
        path: the PNG.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, history in runs.items():
        epochs = [past.epoch for past in history]
        upper.plot(epochs, [past.jsd for past in history], marker=".", label=name)
        lower.plot(epochs, [past.effective_tiles for past in history], marker=".", label=name)
    upper.set_ylabel("Jensen-Shannon divergence\nfrom the epoch before (nats)")
    lower.set_ylabel("effective number of tiles")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    divergences = [past.jsd for history in runs.values() for past in history if not math.isnan(past.jsd)]
    if divergences and min(divergences) > 0:
        upper.set_yscale("log")
    else:
        upper.set_ylim(bottom=0)
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        upper.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
