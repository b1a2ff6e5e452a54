"""Kaplan-Meier curves as inline SVG, in the page's own palette."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 340
_LEFT, _TOP, _RIGHT, _BOTTOM = 50, 10, 16, 44


def time_ticks(longest: float, most: int = 8) -> list[float]:
    """Round times from 0 to at most ``longest``, no more than ``most`` steps of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(longest / most))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * most >= longest * (1 - 1e-9))
    return [index * step for index in range(int(longest / step + 1e-9) + 1)]


def survival_chart(groups: Sequence[Mapping[str, Any]], unit: str) -> Markup:
    """Survival of every group over time: steps, 95 % bands, and a stroke where a patient was censored.

    Args:
        groups: as :func:`monai_mil.metrics.survival_report` gives them.
        unit: of the times.
    """
    longest = max(group["curve"]["time"][-1] for group in groups) or 1.0
    shapes = []
    for series, group in enumerate(groups):
        if group["patients"]:
            shapes += _shapes(group["curve"], series, longest)
    return _axes("".join(shapes), time_ticks(longest), longest, unit)


def at_risk(curve: Mapping[str, Sequence[float]], time: float) -> int:
    """Patients under observation until just before ``time``."""
    places = [index for index, moment in enumerate(curve["time"]) if moment >= time]
    return int(curve["at_risk"][places[0]]) if places else 0


def _shapes(curve: Mapping[str, Sequence[float]], series: int, longest: float) -> list[str]:
    x = [_x(time, longest) for time in curve["time"]]
    low, high = (_steps(x, curve[name]) for name in ("low", "high"))
    marks = [
        f"M{place:.1f} {_y(survival) - 4:.1f}v8"
        for place, survival, count in zip(x, curve["survival"], curve["censored"], strict=True)
        if count
    ]
    return [
        f'<polygon class="band s{series % 8}" points="{" ".join(high + low[::-1])}"/>',
        f'<polyline class="line s{series % 8}" points="{" ".join(_steps(x, curve["survival"]))}"/>',
        f'<path class="line thin s{series % 8}" d="{"".join(marks)}"/>',
    ]


def _steps(x: Sequence[float], values: Sequence[float]) -> list[str]:
    """Corners of a curve that keeps each value until the next time."""
    corners = [f"{x[0]:.1f},{_y(values[0]):.1f}"]
    for place, before, after in zip(x[1:], values, values[1:], strict=False):
        corners += [f"{place:.1f},{_y(before):.1f}", f"{place:.1f},{_y(after):.1f}"]
    return corners


def _axes(content: str, ticks: Sequence[float], longest: float, unit: str) -> Markup:
    parts = [
        f'<svg class="chart survival" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Kaplan-Meier curves">'
    ]
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{_LEFT} {_y(value):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for time in ticks:
        x = _x(time, longest)
        parts.append(f'<path class="grid" d="M{x:.1f} {_y(0):.1f}V{_y(1):.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_y(0) + 16:.1f}" text-anchor="middle">{time:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'{content}<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(unit)}</text>'
    )
    turn = f'transform="translate(11 {(_y(0) + _y(1)) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text class="axis" {turn} text-anchor="middle">without the event</text></svg>')
    return Markup("".join(parts))


def _x(time: float, longest: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * float(time) / longest


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - float(share))
