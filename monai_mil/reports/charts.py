"""Charts of the report as inline SVG: sharp at any size, coloured by the page's own light or dark palette."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from monai_mil.metrics import calibration, roc_curve

_SIZE, _LEFT, _TOP, _PLOT = 300, 50, 10, 238


def roc_chart(curves: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Markup:
    """Receiver operating characteristic of every class with both outcomes.

    Args:
        curves: name, probabilities ``[n]`` and truth ``[n]`` (0 or 1) of every class.
    """
    shapes = []
    for series, (_, prob, truth) in enumerate(curves):
        if 0 < truth.sum() < len(truth):
            curve = roc_curve(prob, truth)
            shapes.append(_line(curve.false_positive_rate, curve.true_positive_rate, series))
    return _axes("1 - specificity", "sensitivity", "".join(shapes), "ROC curve")


def calibration_chart(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], noun: str = "slide") -> Markup:
    """Observed frequency over predicted probability in equal bins; a dot's area grows with the cases in its bin."""
    shapes = []
    for series, (name, prob, truth) in enumerate(curves):
        bins = calibration(prob, truth)
        shapes.append(_line(bins.confidence, bins.frequency, series, thin=True))
        for x, y, count in zip(bins.confidence, bins.frequency, bins.count, strict=True):
            tip = escape(f"{name}: predicted {x:.2f}, observed {y:.2f}, {count} {noun}s")
            place = f'cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="{2.5 + 6 * np.sqrt(count / len(prob)):.1f}"'
            shapes.append(f'<circle class="s{series % 8}" {place}><title>{tip}</title></circle>')
    return _axes("predicted probability", "observed frequency", "".join(shapes), "Calibration curve")


def _axes(x_name: str, y_name: str, content: str, label: str) -> Markup:
    parts = [f'<svg class="chart" viewBox="0 0 {_SIZE} {_SIZE}" role="img" aria-label="{escape(label)}">']
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{_x(0)} {_y(value)}H{_x(1)}M{_x(value)} {_y(0)}V{_y(1)}"/>')
        parts.append(f'<text x="{_x(value)}" y="{_y(0) + 16}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{_y(value) + 4}" text-anchor="end">{value:g}</text>')
    parts.append(f'<path class="chance" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>{content}')
    middle = _LEFT + _PLOT / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_SIZE - 12}" text-anchor="middle">{x_name}</text>')
    turn = f'transform="translate(11 {_TOP + _PLOT / 2}) rotate(-90)"'
    parts.append(f'<text class="axis" {turn} text-anchor="middle">{y_name}</text></svg>')
    return Markup("".join(parts))


def _line(horizontal: np.ndarray, vertical: np.ndarray, series: int, thin: bool = False) -> str:
    path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(horizontal, vertical, strict=True))
    return f'<polyline class="line s{series % 8}{" thin" if thin else ""}" points="{path}"/>'


def _x(value: float) -> float:
    return _LEFT + _PLOT * float(value)


def _y(value: float) -> float:
    return _TOP + _PLOT * (1 - float(value))
