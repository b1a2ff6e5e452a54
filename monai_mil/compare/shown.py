"""The table of a comparison as it is written: CSV with everything, Markdown and the cells of the page for people."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from monai_mil.compare.plan import Plan
from monai_mil.compare.table import Compared, Row, figures_of

_MEASURED = ("seconds", "memory_mib")
"""What differs from run to run of the same comparison; the last columns."""
_TITLES = {
    "froc": "FROC",
    "calibration_error": "calibration error",
    "attention_jsd": "attention JSD",
    "parameters": "parameters",
    "gflops": "GFLOPs of a bag",
    "seconds": "training s (an epoch)",
    "memory_mib": "memory MiB",
}
"""The further columns that a person sees."""


def csv_text(plan: Plan, rows: Sequence[Row]) -> str:
    """The whole table; the columns of time and memory come last."""
    records = [_record(plan, row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(plan: Plan, row: Row) -> dict[str, str]:
    record = {"method": row.name, "runs": f"{row.runs} of {row.asked}"}
    for figure in figures_of(plan):
        each = row.figures[figure.name]
        record |= {f"{figure.name}{end}": _cell(value) for end, value in _parts(each).items()}
    record |= {name: _cell(value) for name, value in row.costs.items() if name not in _MEASURED}
    record |= {"reason": row.reason, "config": row.config, "features": row.features, "command": row.line}
    return record | {name: _cell(row.costs[name]) for name in _MEASURED}


def _parts(each: Compared) -> dict[str, float]:
    return {
        "": each.value.value,
        "_low": each.value.low,
        "_high": each.value.high,
        "_folds": each.folds,
        "_cases": each.cases,
        "_pooled": each.pooled,
        "_difference": each.difference.value,
        "_difference_low": each.difference.low,
        "_difference_high": each.difference.high,
        "_p": each.p_value,
        "_p_holm": each.corrected,
    }


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def shown_table(plan: Plan, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns and the cells of every row: figures and costs that any method has."""
    figures = [figure for figure in figures_of(plan) if any(_is_known(row, figure.name) for row in rows)]
    costs = [name for name in _TITLES if any(not math.isnan(row.costs[name]) for row in rows)]
    titles = ["method", "runs", *(figure.title for figure in figures), *(_TITLES[name] for name in costs)]
    whole = {figure.name: _whole(plan, [row.figures[figure.name] for row in rows]) for figure in figures}
    cells = [
        [row.name + (" (reference)" if row.is_reference else ""), f"{row.runs}/{row.asked}"]
        + [_figure_text(row.figures[figure.name], whole[figure.name]) for figure in figures]
        + [_cost_text(name, row.costs[name], plan.epochs) for name in costs]
        for row in rows
    ]
    return titles, cells


def markdown_text(plan: Plan, rows: Sequence[Row]) -> str:
    """The table for a document, and why some runs have no result."""
    titles, cells = shown_table(plan, rows)
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    missing = [f"- {row.name}: {reason_text(row)}" for row in rows if row.reason]
    return "\n".join([*lines, "", note_text(plan, rows), *([""] if missing else []), *missing]) + "\n"


def note_text(plan: Plan, rows: Sequence[Row]) -> str:
    """What the figures and tests of the table are, and where methods saw other features."""
    tests = "answers for a patient changing places"
    if not plan.survival:
        tests = f"clustered DeLong of AUROC; of the others, {tests}"
    own = next(row.features for row in rows if row.is_reference)
    others = [f"{row.name} ({row.features})" for row in rows if own and row.features not in ("", own)]
    differ = f" Other features than {plan.reference} ({own}) saw: {', '.join(others)}."
    return (
        "Mean over seeds, then over folds (95 % interval from patients drawn again within their folds). p is that of "
        f"the difference to {plan.reference}, corrected after Holm for all methods: {tests}."
        f"{differ if others else ''}"
    )


def reason_text(row: Row) -> str:
    """Why a row's runs are not all done."""
    return f"{row.asked - row.runs} of {row.asked} runs have no result: {row.reason}"


def _is_known(row: Row, figure: str) -> bool:
    return not math.isnan(row.figures[figure].value.value)


def _whole(plan: Plan, column: Sequence[Compared]) -> tuple[int, int]:
    """All folds, and the most cases that any method has."""
    return len(plan.cohort.folds), max(each.cases for each in column)


def _figure_text(each: Compared, whole: tuple[int, int]) -> str:
    """A figure with its interval, what it is not of, and the corrected p-value of its difference to the reference."""
    value = each.value
    if math.isnan(value.value):
        return ""
    text = f"{value.value:.3f}"
    if not math.isnan(value.low):
        text += f" ({value.low:.3f} to {value.high:.3f})"
    folds, cases = whole
    if each.folds < folds:
        text += f" on {each.folds} of {folds} folds"
    elif each.cases < cases:
        text += f" on {each.cases} of {cases} cases"
    if math.isnan(each.corrected):
        return text if math.isnan(each.difference.value) else f"{text}, p unknown: no variance"
    return f"{text}, p {'< 0.001' if each.corrected < 0.001 else format(each.corrected, '.3f')}"


def _cost_text(name: str, value: float, epochs: int) -> str:
    if math.isnan(value):
        return ""
    if name == "parameters":
        return f"{value:,.0f}"
    if name in ("gflops", "attention_jsd"):
        return f"{value:.2g}"
    if name == "seconds":
        return f"{value:.1f} ({value / epochs:.2g})"
    return f"{value:.1f}" if name in _MEASURED else f"{value:.3f}"
