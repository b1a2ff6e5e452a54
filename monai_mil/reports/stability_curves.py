"""How far a network's attention moved between epochs, as curves of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from monai_mil.errors import CohortError
from monai_mil.files import parse_json
from monai_mil.reports.survival_chart import time_ticks

_WIDTH, _HEIGHT = 460, 260
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 12, 14, 42
_DIVERGENCE, _TILES = "divergence (nats)", "effective number of tiles"

Points = list[tuple[float, float]]


def stability_section(source: str | Path, runs: Mapping[str, str | Path] | None) -> dict[str, Any]:
    """What a page shows of it: ``stability``, the charts, and ``stability_runs``, the names of the runs.

    Args:
        source: the file that the page is made of.
        runs: as :func:`stability_charts` takes them; None takes the curve beside ``source``, where there is one.

    Raises:
        CohortError: as :func:`stability_charts`.
    """
    if runs is None:
        beside = Path(source).with_name("attention_stability.json")
        runs = {"this network": beside} if beside.is_file() else {}
    return {"stability": stability_charts(runs), "stability_runs": list(runs)}


def stability_charts(runs: Mapping[str, str | Path]) -> list[Markup]:
    """Divergence between epochs, on a logarithmic scale, and effective number of tiles, over the epochs.

    Args:
        runs: ``attention_stability.json`` of one or several runs, as :class:`monai_mil.savers.AttentionStability`
            writes it, by name.

    Returns:
        The two charts as inline SVG; none where there is no run.

    Raises:
        CohortError: a file is missing or is no such curve; names it.
    """
    histories = [_read(Path(path)) for path in runs.values()]
    if not histories:
        return []
    longest = max(past["epoch"] for history in histories for past in history)
    divergences = [_points(history, "jsd", lowest=1e-12) for history in histories]
    tiles = [_points(history, "effective_tiles") for history in histories]
    return [_logarithmic(divergences, longest), _linear(tiles, longest)]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        history = parse_json(path.read_text(encoding="utf-8"))["epochs"]
        if not history or not all(_is_epoch(past) for past in history):
            raise ValueError("an epoch without its figures")
    except OSError as error:
        raise CohortError(f"attention stability '{path}': cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"attention stability '{path}': no curve of a training ({error!r}); give the attention_stability.json that "
            "training a bundle with attention writes"
        ) from error
    return history


def _is_epoch(past: Mapping[str, Any]) -> bool:
    """Whether it is a training's: its number, and figures that may be unknown."""
    figures = [past[key] for key in ("jsd", "effective_tiles") if past[key] is not None]
    numbers = all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures)
    return numbers and type(past["epoch"]) is int and past["epoch"] >= 1


def _points(history: Sequence[Mapping[str, Any]], key: str, lowest: float = 0.0) -> Points:
    return [(past["epoch"], max(past[key], lowest)) for past in history if past[key] is not None]


def _logarithmic(curves: Sequence[Points], longest: int) -> Markup:
    values = [value for curve in curves for _, value in curve] or [1e-3]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    marks = [((power - low) / (high - low), f"1e{power}") for power in range(low, high + 1)]
    placed = [[(x, (math.log10(y) - low) / (high - low)) for x, y in curve] for curve in curves]
    return _chart(placed, marks, longest, _DIVERGENCE)


def _linear(curves: Sequence[Points], longest: int) -> Markup:
    highest = max((value for curve in curves for _, value in curve), default=0.0) or 1.0
    ticks = time_ticks(highest, most=5)
    top = max(ticks[-1], highest)
    placed = [[(x, y / top) for x, y in curve] for curve in curves]
    return _chart(placed, [(tick / top, f"{tick:g}") for tick in ticks], longest, _TILES)


def _chart(curves: Sequence[Points], marks: Sequence[tuple[float, str]], longest: int, name: str) -> Markup:
    """Curves whose values have been brought to 0 ... 1, with the marks of that axis."""
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(name)}">']
    for share, text in marks:
        parts.append(f'<path class="grid" d="M{_LEFT} {_y(share):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{_y(share) + 4:.1f}" text-anchor="end">{text}</text>')
    for epoch in time_ticks(longest, most=6):
        if epoch == int(epoch):
            place = f'x="{_x(epoch, longest):.1f}" y="{_y(0) + 16:.1f}"'
            parts.append(f'<text {place} text-anchor="middle">{epoch:g}</text>')
    for series, curve in enumerate(curves):
        path = " ".join(f"{_x(epoch, longest):.1f},{_y(share):.1f}" for epoch, share in curve)
        parts.append(f'<polyline class="line s{series % 8}" points="{path}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">epoch</text>')
    turn = f'transform="translate(11 {(_y(0) + _y(1)) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text class="axis" {turn} text-anchor="middle">{escape(name)}</text></svg>')
    return Markup("".join(parts))


def _x(epoch: float, longest: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * epoch / longest


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)
