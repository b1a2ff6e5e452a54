"""The figure of one scan: its slice scores along the body, the attention's bell and the true slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.files import replacing
from monai_mil.heatmaps.decision import is_muted, muted_text
from monai_mil.heatmaps.figure import INK, PAPER, RULE, SOFT, WARNING, caption, millimetres, score_text
from monai_mil.heatmaps.scale import colour_scale
from monai_mil.heatmaps.scan_heatmap import ScanHeatmap
from monai_mil.scans import ScanFrame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCORE, _BELL, _TRUE = "#0072b2", "#d55e00", "#009e73"
_MUTED = "#9aa5b1"
_HEADS = ("#0072b2", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999", "#117733")
_STROKES: tuple[Any, ...] = ("-", (0, (4, 1.5)))
_MOST_DOTS = 100
_LEAST_SHARES = 4
"""Attention's axis reaches at least so many even shares, so that a scan weighed evenly looks even."""


def export_curve(heatmap: ScanHeatmap, path: str | Path, *, title: str | None = None) -> Path:
    """Draw the scores of the slices over their position, with the attention's bell and the true slices.

    The bell is the normal curve of the attention's own mean and standard deviation over the slices' positions in mm,
    at the height at which it sums to 1 over the slices, as Normal Guidance compares them. Several heads, or scores
    that are no attention, have the attention and its bells in a second panel. Spans of true slices are shaded where
    the heatmap has labels; unknown ones are hatched. The upper axis counts the slices from 1. Scores that run from 0
    to 1 have this whole axis; attention has its even share as a line, and an axis of at least four of them. The lines
    of a scan below its operating point are pale, and the title says so.

    Args:
        heatmap: the scores.
        path: the PNG file.
        title: first line of the title; default the scan's id.
    """
    path = Path(path)
    figure = draw_curve(heatmap, title=title or heatmap.frame.scan_id)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def draw_curve(heatmap: ScanHeatmap, *, title: str | None = None, width: float = 11.0, dpi: int = 150) -> Figure:
    """The figure of :func:`export_curve`; without a title it is the panels only.

    Args:
        heatmap: the scores.
        title: first line of the title, None for no title at all.
        width: of the figure in inches.
        dpi: pixels an inch.
    """
    import matplotlib
    from matplotlib.figure import Figure

    attention = heatmap.attention
    joint = attention is not None and len(attention) == 1 and np.allclose(attention[0], heatmap.slice_scores)
    panels = 1 if attention is None or joint else 2
    with matplotlib.rc_context(_style()):
        height = 3.9 * panels + (0.8 if title else 0.0)
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=_colour(PAPER))
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
        _draw_scores(axes[0], heatmap)
        if attention is not None:
            _draw_attention(axes[-1], heatmap, attention, curves=not joint)
        scale = colour_scale(heatmap.scores, heatmap.attributes)
        for axis in axes:
            _begin_at_zero(axis)
        if scale.is_unit:
            axes[0].set_ylim(0, 1.05)
        elif scale.measure == "attention":
            _measure_by_even_share(axes[0], scale.uniform)
        if attention is not None and not joint:
            _measure_by_even_share(axes[-1], 1 / len(heatmap))
        for axis in axes:
            _shade_labels(axis, heatmap)
            _write_legend(axis)
        axes[-1].set_xlabel("position along the slice normal, mm")
        if note := heatmap.attributes.get("note"):
            figure.supxlabel(note, x=0.012, ha="left", fontsize=10, weight="bold", color=_colour(WARNING))
        _count_slices(axes[0], heatmap.frame.positions_mm)
        if title:
            second = "  ·  ".join(filter(None, [caption(heatmap.attributes), muted_text(heatmap)]))
            figure.suptitle(title + ("\n" if second else ""), x=0.012, ha="left", fontsize=15, weight="bold")
            figure.text(0.012, 1 - 0.52 / height, second, ha="left", va="center", fontsize=11, color=_colour(SOFT))
    return figure


def bell(positions: np.ndarray, mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Places and heights of the normal curve that sums to 1 over the slices' positions, fine enough to draw.

    Args:
        positions: of the slices, mm, ascending, ``[n]``.
        mean: of weights on these slices, mm.
        std: of the same weights, mm; one of 0 is a stroke at the mean.
    """
    if std == 0:
        return np.array([mean, mean]), np.array([0.0, 1.0])
    inside = mean + std * np.linspace(-5, 5, 201)
    at = np.union1d(positions, inside[(inside >= positions[0]) & (inside <= positions[-1])])
    # no underflow: the mean of weights on slices is never further than their deviation from the nearest slice
    total = np.exp(-(((positions - mean) / std) ** 2) / 2).sum()
    return at, np.exp(-(((at - mean) / std) ** 2) / 2) / total


def _draw_scores(axis: Axes, heatmap: ScanHeatmap) -> None:
    positions, scores, peak = heatmap.frame.positions_mm, heatmap.slice_scores, heatmap.peak
    _line(axis, positions, scores, color=_pale(_SCORE, heatmap), label=heatmap.name, zorder=3)
    if heatmap.threshold is not None and np.isfinite(heatmap.threshold):
        label = f"threshold {score_text(heatmap.threshold)}"
        axis.axhline(heatmap.threshold, color=_colour(SOFT), linestyle=(0, (6, 3)), linewidth=1.2, label=label)
    elif heatmap.threshold == np.inf:
        axis.plot([], [], " ", label="below the operating point: no foreground")
    label = f"highest: slice {peak + 1}, {millimetres(positions[peak])}, {score_text(float(scores[peak]))}"
    axis.plot(positions[peak], scores[peak], "o", ms=9, mfc="none", mec=_colour(INK), mew=1.6, zorder=5, label=label)
    axis.set_ylabel(heatmap.name)


def moments_mm(attention: np.ndarray, frame: ScanFrame) -> tuple[list[float], list[float]]:
    """Mean position and standard deviation in mm of every row of ``attention`` ``[h, n]`` along the slice normal."""
    import torch

    from monai_mil.networks.blocks import attention_moments

    positions = torch.from_numpy(np.ascontiguousarray(frame.positions_mm))
    mean, std = attention_moments(torch.from_numpy(attention)[None].double(), positions)
    return mean[0].tolist(), std[0].tolist()


def _draw_attention(axis: Axes, heatmap: ScanHeatmap, attention: np.ndarray, *, curves: bool) -> None:
    frame, positions = heatmap.frame, heatmap.frame.positions_mm
    several = len(attention) > 1
    for head, (mean, std) in enumerate(zip(*moments_mm(attention, frame), strict=True)):
        colour = _pale(_HEADS[head % len(_HEADS)] if several else _BELL, heatmap)
        stroke = _STROKES[head // len(_HEADS) % 2]
        if curves:
            own = colour if several else _pale(_SCORE, heatmap)
            _line(axis, positions, attention[head], color=own, alpha=0.45, label=None if several else "attention")
        text = f"{f'head {head + 1}' if several else 'normal bell'}: {millimetres(mean, std)}"
        axis.plot(*bell(positions, mean, std), color=colour, linestyle=stroke, linewidth=2.2, label=text, zorder=4)
        axis.axvline(mean, color=colour, linestyle=(0, (1, 2)), linewidth=1.2)
    if curves:
        axis.set_ylabel("attention")


def _begin_at_zero(axis: Axes) -> None:
    """Unless something is below; called when all lines are drawn, because a limit that is set takes no more of them."""
    lowest, highest = axis.dataLim.y0, axis.dataLim.y1
    if lowest >= 0:
        axis.set_ylim(0.0, 1.05 * highest or 1.0)


def _measure_by_even_share(axis: Axes, share: float) -> None:
    soft, place = _colour(SOFT), axis.get_yaxis_transform()
    axis.axhline(share, color=soft, linestyle=(0, (2, 2)), linewidth=1.2)
    axis.text(0.005, share, f"even share {score_text(share)}", transform=place, va="bottom", fontsize=8.5, color=soft)
    axis.set_ylim(top=max(axis.get_ylim()[1], _LEAST_SHARES * share))


def _pale(colour: str, heatmap: ScanHeatmap) -> str:
    return _MUTED if is_muted(heatmap) else colour


def _line(axis: Axes, positions: np.ndarray, values: np.ndarray, **style: Any) -> None:
    dots = len(positions) <= _MOST_DOTS
    axis.plot(positions, values, linewidth=1.4 if dots else 1.0, marker="o" if dots else None, markersize=3.5, **style)


def _shade_labels(axis: Axes, heatmap: ScanHeatmap) -> None:
    if heatmap.labels is None:
        return
    unknown: dict[str, Any] = {"facecolor": "none", "edgecolor": _colour(RULE), "hatch": "///", "linewidth": 0}
    true: dict[str, Any] = {"color": _TRUE, "alpha": 0.2, "linewidth": 0}
    for value, label, look in ((1, "true slices", true), (-1, "unknown", unknown)):
        for span in label_spans(heatmap.frame.positions_mm, heatmap.labels == value):
            axis.axvspan(*span, label=label, zorder=0, **look)
            label = "_" + label.lstrip("_")  # matplotlib leaves such out of the legend: once is enough


def label_spans(positions: np.ndarray, chosen: np.ndarray) -> list[tuple[float, float]]:
    """From where to where runs of chosen slices reach, in mm: a slice reaches half the way to its neighbours.

    Args:
        positions: of the slices, mm, ascending, ``[n]``.
        chosen: which slices, bool ``[n]``.
    """
    if len(positions) == 1:
        edges = positions[0] + np.array([-0.5, 0.5])
    else:
        middle = (positions[1:] + positions[:-1]) / 2
        edges = np.concatenate([[2 * positions[0] - middle[0]], middle, [2 * positions[-1] - middle[-1]]])
    change = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(int)))
    return [(float(edges[start]), float(edges[end])) for start, end in change.reshape(-1, 2)]


def _count_slices(axis: Axes, positions: np.ndarray) -> None:
    """Slice numbers on an upper axis, at the slices' own places, however they are spaced."""
    n = len(positions)
    step = next(step * 10**power for power in range(6) for step in (1, 2, 5) if step * 10**power * 12 >= n)
    counted = [1, *range(step if step > 2 else 1 + step, n + 1, step)]
    upper = axis.secondary_xaxis("top")
    upper.set_xticks(positions[np.array(counted) - 1], [str(value) for value in counted])
    upper.set_xlabel("slice")


def _write_legend(axis: Axes) -> None:
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, borderaxespad=0, alignment="left")


def _style() -> Any:
    rule, soft, ink = _colour(RULE), _colour(SOFT), _colour(INK)
    return {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": ink,
        "axes.edgecolor": rule,
        "axes.labelcolor": soft,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": rule,
        "grid.linewidth": 0.6,
        "xtick.color": soft,
        "ytick.color": soft,
        "legend.fontsize": 9.5,
        "legend.labelcolor": ink,
    }


def _colour(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
