"""Small charts for many rows side by side, as inline SVG: boxes, curves of many runs, scattered points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _ROW = 640, 24
_LEFT, _RIGHT, _TOP, _BOTTOM = 210, 14, 6, 30
_SMALL, _TALL = 250, 150
_PAD, _FOOT, _HEAD = 44, 22, 8

Curve = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


def box_chart(rows: Sequence[tuple[str, Sequence[float]]], name: str) -> Markup:
    """A box a row, with a dot for every value: quartiles, median, and whiskers to the lowest and highest value.

    Args:
        rows: name and values, such as those of the folds; a row without any stays empty.
        name: what the values are.
    """
    values = [value for _, row in rows for value in row if math.isfinite(value)]
    low, high = _span(values)
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    parts = [f'<svg class="chart wide" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(name)}">']
    bottom = _TOP + _ROW * len(rows)
    for tick in _ticks(low, high):
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for number, (title, row) in enumerate(rows):
        middle = _TOP + _ROW * (number + 0.5)
        parts.append(f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(_short(title, 34))}</text>')
        known = sorted(value for value in row if math.isfinite(value))
        if known:
            parts.append(_box(known, middle, x))
    place = f'x="{(_LEFT + _WIDTH) / 2}" y="{height - 3}"'
    parts.append(f'<text class="axis" {place} text-anchor="middle">{escape(name)}</text></svg>')
    return Markup("".join(parts))


def _box(known: Sequence[float], middle: float, x: Scale) -> str:
    first, median, third = np.quantile(known, [0.25, 0.5, 0.75])
    dots = "".join(f'<circle class="s0" cx="{x(value):.1f}" cy="{middle:.1f}" r="2.4"/>' for value in known)
    width = max(x(third) - x(first), 1)
    return (
        f'<path class="line thin s0" d="M{x(known[0]):.1f} {middle:.1f}H{x(known[-1]):.1f}"/>'
        f'<rect class="box" x="{x(first):.1f}" y="{middle - 7:.1f}" width="{width:.1f}" height="14"/>'
        f'<path class="line s1" d="M{x(median):.1f} {middle - 7:.1f}v14"/>{dots}'
    )


def curve_charts(
    panels: Sequence[tuple[str, Sequence[Curve]]], x_name: str, y_name: str, *, logarithmic: bool = False
) -> list[Markup]:
    """One small chart a panel: every curve thin, their mean thick; all with the same axes.

    Args:
        panels: title, and the curves as points (x, y).
        x_name: what x is.
        y_name: what y is.
        logarithmic: y by powers of ten; values below 1e-12 are drawn there.
    """
    placed = [(title, [_placed(curve, logarithmic) for curve in curves]) for title, curves in panels]
    points = [point for _, curves in placed for curve in curves for point in curve]
    if not points:
        return []
    low, high = _span([y for _, y in points])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    last = last if last > first else first + 1
    return [
        _panel(title, curves, (first, last), (low, high), (x_name, y_name), logarithmic) for title, curves in placed
    ]


def _placed(curve: Curve, logarithmic: bool) -> list[tuple[float, float]]:
    known = [(x, y) for x, y in curve if y is not None and math.isfinite(y)]
    return [(x, math.log10(max(y, 1e-12))) for x, y in known] if logarithmic else known


def _panel(
    title: str,
    curves: Sequence[Curve],
    across: tuple[float, float],
    up: tuple[float, float],
    names: tuple[str, str],
    logarithmic: bool,
) -> Markup:
    def x(value: float) -> float:
        return _PAD + (_SMALL - _PAD - 8) * (value - across[0]) / (across[1] - across[0])

    def y(value: float) -> float:
        return _HEAD + (_TALL - _HEAD - _FOOT) * (1 - (value - up[0]) / (up[1] - up[0]))

    label = escape(f"{title}: {names[1]} over {names[0]}")
    parts = [f'<svg class="chart small-chart" viewBox="0 0 {_SMALL} {_TALL}" role="img" aria-label="{label}">']
    ticks = _ticks(*up, most=4)
    for tick, text in zip(ticks, _powers(ticks) if logarithmic else [f"{tick:g}" for tick in ticks], strict=True):
        parts.append(f'<path class="grid" d="M{_PAD} {y(tick):.1f}H{_SMALL - 8}"/>')
        parts.append(f'<text x="{_PAD - 4}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    parts += [
        f'<text x="{x(tick):.1f}" y="{_TALL - 8}" text-anchor="middle">{tick:g}</text>'
        for tick in _ticks(*across, most=4)
        if tick == int(tick)
    ]
    parts += [f'<polyline class="line faint s0" points="{_points(curve, x, y)}"/>' for curve in curves]
    parts.append(f'<polyline class="line s1" points="{_points(_mean_curve(curves), x, y)}"/></svg>')
    return Markup("".join(parts))


def _points(curve: Curve, x: Scale, y: Scale) -> str:
    return " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in curve)


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean at every place that any curve has."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for place, value in curve:
            values.setdefault(place, []).append(value)
    return [(place, sum(values[place]) / len(values[place])) for place in sorted(values)]


def scatter_chart(title: str, points: np.ndarray, groups: Sequence[int]) -> Markup:
    """Points of the plane without axes, coloured by group.

    Args:
        title: for those who cannot see it.
        points: ``[n, 2]``.
        groups: number of each one's colour.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    unit = (points - low) / np.where(high > low, high - low, 1)
    parts = [f'<svg class="chart small-chart" viewBox="0 0 {_SMALL} {_TALL}" role="img" aria-label="{escape(title)}">']
    for (x, y), group in zip(unit, groups, strict=True):
        place = f'cx="{10 + x * (_SMALL - 20):.1f}" cy="{10 + y * (_TALL - 20):.1f}"'
        parts.append(f'<circle class="s{group % 8}" {place} r="3.4"/>')
    return Markup("".join([*parts, "</svg>"]))


def _span(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * (abs(high) or 1.0)
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two, at most so many steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * most >= high - low)
    return [round(step * index, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(ticks: Sequence[float]) -> list[str]:
    """Ten to these powers, in as few digits as tell them apart."""
    texts = ([f"{10**tick:.{digits}g}" for tick in ticks] for digits in range(1, 7))
    return next((each for each in texts if len(set(each)) == len(each)), [f"{10**tick:g}" for tick in ticks])


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
