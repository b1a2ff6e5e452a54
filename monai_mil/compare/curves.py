"""What the page of a comparison draws over epochs and over a swept key, as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from monai_mil.compare.results import MethodResults
from monai_mil.metrics import auroc


def epochs_text(results: Sequence[MethodResults]) -> str:
    """CSV, a row an epoch of a run: loss, validation, test where it was followed, divergence of attention."""
    rows = []
    for method in results:
        for (fold, seed), run in sorted(method.runs.items()):
            divergence = {row["epoch"]: row.get("jsd") for row in run.stability}
            for row in run.history:
                own = {"attention_jsd": divergence.get(row["epoch"])} if divergence else {}
                rows.append({"method": method.name, "fold": fold, "seed": seed, **row, **own})
    return _csv_text(("method", "fold", "seed", "epoch"), rows)


def sweep_text(results: Sequence[MethodResults], key: str) -> str:
    """CSV, a row a run and value of the key that was swept: AUROC of the test cases."""
    rows = [
        {"method": method.name, "fold": fold, "seed": seed, key: value, "test_auroc": auroc(*run.sweep[value])}
        for method in results
        for (fold, seed), run in sorted(method.runs.items())
        for value in sorted(run.sweep, key=_in_order)
    ]
    return _csv_text(("method", "fold", "seed", key, "test_auroc"), rows)


def _in_order(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, words behind them."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def _csv_text(first: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    names = [*first, *sorted({name for row in rows for name in row} - set(first))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
