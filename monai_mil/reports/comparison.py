"""The page of a comparison of methods: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monai_mil.reports.pages import footer, write_page
from monai_mil.reports.small_charts import Curve, box_chart, curve_charts, scatter_chart


@dataclass(frozen=True)
class ComparedMethod:
    """What the page shows of one method.

    Attributes:
        name: of the method.
        cells: of the table, as they are shown.
        better: by the title of a figure, whether it differs from the reference: ``"good"``, ``"bad"`` or ``""``.
        folds: by the title of a figure, its values on the folds.
        curves: by the title of a chart, the curves of the runs as points (x, y).
        vectors: bag vectors in the plane ``[n, 2]`` and each one's class, or None.
        config: what it is of which bundle.
        command: the line that repeats its first training.
        reason: why some of its runs have no result; empty where all have.
    """

    name: str
    cells: Sequence[str]
    better: Mapping[str, str] = field(default_factory=dict)
    folds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    vectors: tuple[np.ndarray, Sequence[int]] | None = None
    config: str = ""
    command: str = ""
    reason: str = ""


def write_comparison(
    out_html: str | Path,
    columns: Sequence[str],
    methods: Sequence[ComparedMethod],
    *,
    title: str,
    summary: str,
    note: str,
    classes: Sequence[str] = (),
    axes: Mapping[str, tuple[str, str, bool]] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Write the page.

    Args:
        out_html: the file.
        columns: of the table, titles of figures among them.
        methods: the rows.
        title: of the page.
        summary: the line below it.
        note: what the table's figures and tests are.
        classes: names, by the numbers that the bag vectors have.
        axes: by the title of a chart of curves, what its axes are and whether the upright one is logarithmic.
        settings: further lines of the footer.

    Returns:
        ``out_html``.
    """
    figures = list(dict.fromkeys(name for method in methods for name in method.folds))
    folds = {name: [(method.name, method.folds.get(name, ())) for method in methods] for name in figures}
    boxes = [(name, box_chart(rows, name)) for name, rows in folds.items()]
    sections = []
    for name, (x_name, y_name, logarithmic) in (axes or {}).items():
        shown = [method for method in methods if any(len(curve) for curve in method.curves.get(name, ()))]
        charts = curve_charts(
            [(method.name, method.curves[name]) for method in shown], x_name, y_name, logarithmic=logarithmic
        )
        if charts:
            panels = list(zip((method.name for method in shown), charts, strict=True))
            sections.append({"name": name, "axes": f"{y_name} over {x_name}", "panels": panels})
    scatters = [
        (method.name, scatter_chart(f"bag vectors of {method.name}", *method.vectors))
        for method in methods
        if method.vectors is not None
    ]
    return write_page(
        "comparison.html.j2",
        out_html,
        title=title,
        noun="slide",
        note=None,
        summary=summary,
        columns=columns,
        methods=methods,
        table_note=note,
        boxes=boxes,
        sections=sections,
        scatters=scatters,
        classes=classes,
        settings=footer(out_html, settings or {}),
    )
