"""The report of a survival evaluation: concordance, risk groups and their Kaplan-Meier curves, one HTML file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_mil.errors import CohortError
from monai_mil.files import parse_json
from monai_mil.reports.pages import footer, write_page
from monai_mil.reports.stability_curves import stability_section
from monai_mil.reports.survival_chart import at_risk, survival_chart, time_ticks


def write_survival_report(
    survival_json: str | Path,
    out_html: str | Path,
    *,
    title: str = "Survival report",
    unit: str = "time",
    settings: Mapping[str, str] | None = None,
    stability: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write the report of one cohort.

    Args:
        survival_json: as :class:`monai_mil.savers.SurvivalSaver` writes it; the patients are listed from the
            ``survival.csv`` beside it, where there is one.
        out_html: the report.
        title: its title.
        unit: what the axis of the times says, such as ``months``.
        settings: further lines of the footer, such as bundle and encoder.
        stability: ``attention_stability.json`` of one training or of several to compare, by name; None takes the one
            beside the report, where there is one.

    Returns:
        ``out_html``.

    Raises:
        CohortError: the file is missing or is no survival report, or a curve of attention is invalid.
    """
    path = Path(survival_json)
    report = _read(path)
    groups = report["groups"]
    longest = max(group["curve"]["time"][-1] for group in groups) or 1.0
    ticks = time_ticks(longest)
    rows = [{"name": group["name"], "counts": [at_risk(group["curve"], tick) for tick in ticks]} for group in groups]
    return write_page(
        "survival.html.j2",
        out_html,
        title=title,
        noun="patient",
        note=report.get("note"),
        summary=f"{report['patients']} patients followed, {report['events']} events",
        cards=_cards(report),
        chart=survival_chart(groups, unit),
        groups=groups,
        at_risk={"times": [f"{tick:g}" for tick in ticks], "rows": rows},
        unit=unit,
        cutoffs=", ".join(f"{value:.3g}" for value in report["cutoffs"]),
        cutoffs_from=report["cutoffs_from"],
        **stability_section(path, stability),
        patients=_patients(path.with_name("survival.csv")),
        settings=footer(path, settings or {}),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        report = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CohortError(f"survival '{path}': cannot be read ({error.strerror}); run the evaluation first") from error
    except ValueError as error:
        raise CohortError(f"survival '{path}': not valid JSON ({error}); run the evaluation again") from error
    if not isinstance(report, dict) or not {"concordance", "groups", "log_rank"} <= set(report):
        raise CohortError(f"survival '{path}': no survival report; give the survival.json of an evaluation")
    return report


def _patients(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _cards(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Concordance with its interval as a bar from 0 to 1, and the log-rank test."""
    figure, test = report["concordance"], report["log_rank"]
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    card: dict[str, Any] = {"name": "Concordance index", "value": f"{value:.3f}", "low": None, "note": "no interval"}
    if low is not None and high is not None:
        card |= {"low": f"{low:.3f}", "high": f"{high:.3f}", "at": 100 * value, "left": 100 * low}
        card["span"] = max(100 * (high - low), 0.5)
    p_value = test["p_value"]
    shown = "n/a" if p_value is None else f"p = {p_value:.3g}" if p_value >= 1e-4 else "p < 0.0001"
    note = (
        "needs two groups and events"
        if p_value is None
        else f"chi-square {test['statistic']:.1f}, {test['degrees']} df"
    )
    return [card, {"name": "Log-rank test of the groups", "value": shown, "low": None, "note": note}]
