"""The report of a cohort: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import MonaiMILError
from monai_mil.heatmaps import Heatmap, ScanHeatmap, is_of_model, load_heatmap
from monai_mil.names import file_stem
from monai_mil.reports.charts import calibration_chart, roc_chart
from monai_mil.reports.pages import footer, write_page
from monai_mil.reports.panels import Panel, ScanPanel, make_panel, make_scan_panel
from monai_mil.reports.predictions import Predictions, read_predictions
from monai_mil.reports.stability_curves import stability_section

_METRICS = {
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "accuracy": "Accuracy",
}


def write_report(
    predictions_csv: str | Path,
    heatmap_dir: str | Path,
    out_html: str | Path,
    *,
    title: str = "Cohort report",
    slides: Mapping[str, str | Path] | None = None,
    max_figures: int = 12,
    tiles: int = 8,
    resamples: int = 1000,
    seed: int = 0,
    settings: Mapping[str, str] | None = None,
    stability: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write the report of one cohort.

    Metrics, curves and the confusion matrix are shown where the table has labels. Heatmaps are shown of the slides
    or scans most worth a look: wrong predictions first, the most certain ones before the others; the report says how
    many.

    Args:
        predictions_csv: table as :class:`PredictionSaver` writes it, binary, multi-class or multi-label.
        heatmap_dir: folder of ``<slide_id>.h5`` or ``<scan_id>.h5``, or of one a class, ``<slide_id>_<class>.h5``;
            cases without one are left out of the heatmaps.
        out_html: the report.
        title: its title.
        slides: where the slides or scans are, by id, if not where they were at inference.
        max_figures: most heatmaps to show; bounds the size of the file (about 150 kB each).
        tiles: tiles, or slices of a scan, of the highest scores shown of each.
        resamples: bootstrap resamples of whole patients behind the 95 % intervals.
        seed: of the resampling.
        settings: further lines of the footer, such as bundle and encoder.
        stability: ``attention_stability.json`` of one training or of several to compare, by name; None takes the one
            beside the predictions, where there is one.

    Returns:
        ``out_html``.

    Raises:
        CohortError: the table, or a curve of attention, is invalid.

    Examples:
        >>> from monai_mil.reports import write_report
        >>> _ = (folder / "predictions.csv").write_text('''slide_id,patient_id,label,pred,prob_normal,prob_tumor
        ... S-1,P-1,tumor,tumor,0.2,0.8
        ... S-2,P-2,normal,tumor,0.4,0.6''')
        >>> report = write_report(folder / "predictions.csv", folder, folder / "report.html", resamples=10)
        >>> report.name, "S-2" in report.read_text()
        ('report.html', True)
    """
    table = read_predictions(predictions_csv)
    figures, figures_note = _figures(table, Path(heatmap_dir), slides, max_figures, tiles)
    patients, patients_note = _patients(Path(predictions_csv).with_name("patients.csv"), table)
    numbers = {figure["case"]: figure["number"] for figure in reversed(figures)}
    curves = table.curves if table.labelled.any() else []
    return write_page(
        "report.html.j2",
        out_html,
        title=title,
        noun=table.noun,
        note=table.note,
        classes=table.classes,
        summary=_summary(table),
        metrics=_metrics(table, resamples, seed),
        metrics_note=_metrics_note(table, resamples),
        curves=[name for name, _, _ in curves],
        roc=roc_chart(curves),
        calibration=calibration_chart(curves, table.noun),
        patients=[] if patients is None else [_patient_row(patients, index) for index in range(len(patients))],
        patient_metrics=[] if patients is None else _metrics(patients, resamples, seed),
        patients_note=patients_note,
        class_counts=_class_counts(table),
        confusion=_confusion(table),
        **stability_section(predictions_csv, stability),
        figures=figures,
        figures_note=figures_note,
        with_second=bool(_second_column(table)),
        columns=[{"name": name, "kind": ""} for name in (table.noun, *_second_column(table), "label", "predicted")]
        + [{"name": f"p({name})", "kind": "num"} for name in table.classes]
        + ([{"name": "remarks", "kind": ""}] if any(table.remarks) else []),
        with_remarks=any(table.remarks),
        rows=[_row(table, index) | {"figure": numbers.get(table.slide_ids[index])} for index in range(len(table))],
        settings=footer(predictions_csv, {**_model(table), **(settings or {}), "bootstrap seed": str(seed)}),
    )


def _patients(path: Path, table: Predictions) -> tuple[Predictions | None, str]:
    """The patients' table beside the predictions, and what is said about it: it is shown if it is of the same model."""
    if table.noun == "patient" or not path.is_file():
        return None, ""
    patients = read_predictions(path)
    if (patients.model, patients.classes) != (table.model, table.classes):
        return None, f"{path.name} is of another model than the predictions and left out; evaluate or predict anew."
    return patients, f"{_count(len(patients), 'patient')}: the probabilities of a patient's {table.noun}s put together."


def _patient_row(patients: Predictions, index: int) -> dict[str, Any]:
    return _row(patients, index) | {"parts": ", ".join(patients.parts[index])}


def _second_column(table: Predictions) -> tuple[str, ...]:
    """Whose a slide or scan is, where the table says it; of which of them a patient's answer is."""
    if table.noun == "patient":
        return ("made of",)
    return ("patient",) if table.knows_patients else ()


def _model(table: Predictions) -> dict[str, str]:
    return {} if table.model is None else {"model": table.model}


def _summary(table: Predictions) -> str:
    cases, patients = _count(len(table), table.noun), _count(len(set(table.patient_ids)), "patient")
    of_patients = f" of {patients}" if table.knows_patients else ""
    kind = "multi-label" if table.multi_label else "binary" if len(table.classes) == 2 else "multi-class"
    return f"{cases}{of_patients}, {int(table.labelled.sum())} labelled; {kind}: {', '.join(table.classes)}"


def _metrics(table: Predictions, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Cards of the metrics over all classes and, where there are several questions, of every class's AUROC."""
    if not table.labelled.any():
        return []
    from monai_mil.metrics import classification_report

    known = table.labelled
    truth = table.truth[known] if table.multi_label else table.truth[known].argmax(axis=1)
    patients = [name for name, kept in zip(table.patient_ids, known, strict=True) if kept]
    report = classification_report(
        table.prob[known],
        truth,
        table.classes,
        groups=patients,
        n=resamples,
        seed=seed,
        operating_points=table.operating_points,
    )
    cards = [_card(name, report[key], table.noun) for key, name in _METRICS.items()]
    if table.operating_points is not None:
        cards += [
            _card(f"{rate.capitalize()}, {name}", report["classes"][name][rate], table.noun)
            for name, _, _ in table.curves
            for rate in ("sensitivity", "specificity")
        ]
    if len(table.curves) > 1:
        cards += [_card(f"AUROC, {name}", report["classes"][name]["auroc"], table.noun) for name in table.classes]
    error = report["expected_calibration_error"]
    cards.append({"name": "Calibration error", "value": f"{error:.3f}", "low": None, "note": "expected, ten bins"})
    return cards


def _card(name: str, interval: Mapping[str, Any], noun: str) -> dict[str, Any]:
    name += "".join(f", without {label} ({why})" for label, why in interval.get("missing", {}).items())
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if np.isnan(value):
        return {"name": name, "value": "n/a", "low": None, "note": f"needs {noun}s of both outcomes"}
    if np.isnan(low):
        return {"name": name, "value": f"{value:.3f}", "low": None, "note": "no interval"}
    percent = {"at": 100 * value, "left": 100 * low, "span": max(100 * (high - low), 0.5)}
    return {"name": name, "value": f"{value:.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}"} | {
        key: round(number, 2) for key, number in percent.items()
    }


def _metrics_note(table: Predictions, resamples: int) -> str:
    one, many = "The most probable class is predicted.", "Classes of a probability of at least 0.5 are predicted."
    if table.operating_points is not None:
        points = dict(zip(table.classes, table.operating_points, strict=True))
        listed = ", ".join(f"{name} {points[name]:.3g}" for name, _, _ in table.curves)
        one = many = f"A class is predicted from its operating point on ({listed})."
    return (
        f"{many if table.multi_label else one} Below each figure its 95 % interval: percentile bootstrap, {resamples} "
        f"resamples of {'whole patients' if table.knows_patients else f'{table.noun}s'}; bars run from 0 to 1."
    )


def _class_counts(table: Predictions) -> list[dict[str, Any]]:
    labelled, predicted = np.nansum(table.truth, axis=0).astype(int), table.predicted.sum(axis=0)
    return [
        {"name": name, "labelled": int(labelled[c]) if table.labelled.any() else "n/a", "predicted": int(predicted[c])}
        for c, name in enumerate(table.classes)
    ]


def _confusion(table: Predictions) -> list[dict[str, Any]]:
    """One matrix of all classes, or one of yes and no for every label."""
    known = ~np.isnan(table.truth)
    if not known.any():
        return []
    if not table.multi_label:
        rows = table.labelled
        return [_matrix("", table.classes, table.truth[rows].argmax(axis=1), table.predicted[rows].argmax(axis=1))]
    return [
        _matrix(name, ("no", "yes"), table.truth[known[:, c], c].astype(int), table.predicted[known[:, c], c])
        for c, name in enumerate(table.classes)
    ]


def _matrix(title: str, names: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(truth * len(names) + predicted, minlength=len(names) ** 2).reshape(len(names), -1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        {
            "name": name,
            "cells": [
                {"count": int(count), "share": round(float(share), 3), "percent": f"{100 * share:.0f}"}
                for count, share in zip(counts[i], shares[i], strict=True)
            ],
        }
        for i, name in enumerate(names)
    ]
    return {"title": title, "names": names, "rows": rows}


def _row(table: Predictions, index: int) -> dict[str, Any]:
    known = bool(table.labelled[index])
    own = table.noun != "patient" and table.patient_ids[index] == table.slide_ids[index]
    patient = "" if own else table.patient_ids[index]
    return {
        "slide_id": table.slide_ids[index],
        "patient_id": patient,
        "second": ", ".join(table.parts[index]) if table.noun == "patient" else patient,
        "label": table.label_text[index],
        "pred": table.pred_text[index],
        "verdict": ("bad" if table.wrong[index] else "good") if known else "",
        "probs": table.prob[index].tolist(),
        "remarks": table.remarks[index] if table.remarks else "",
    }


def _figures(
    table: Predictions, folder: Path, slides: Mapping[str, str | Path] | None, most: int, tiles: int
) -> tuple[list[dict[str, Any]], str]:
    """The heatmaps to show, most interesting first, and what is said about their choice."""
    files: dict[int, dict[tuple[str, str], Path]] = {index: {} for index in range(len(table))}
    others = 0
    for index, names in enumerate(table.parts):
        for name in names:
            own, left_out = _heatmap_files(folder, name, table)
            files[index] |= {(name, part): path for part, path in own.items()}
            others += left_out
    having = [index for index, found in files.items() if found]
    order = sorted(having, key=lambda index: (not table.wrong[index], -table.certainty[index]))
    figures: list[dict[str, Any]] = []
    unreadable = []
    chosen = [(case, *found) for case in order for found in files[case].items()]
    for index, (name, part), path in chosen[:most]:
        try:
            panel = _panel(load_heatmap(path), slides, tiles)
        except (MonaiMILError, ValueError) as error:
            unreadable.append(str(error))
            continue
        probs = sorted(zip(table.classes, table.prob[index].tolist(), strict=True), key=lambda entry: -entry[1])
        figure = {"number": len(figures) + 1, "panel": panel, "part": part, "probs": probs[:6]}
        figures.append(_row(table, index) | figure | {"slide_id": name, "case": table.slide_ids[index]})
    shown = len({figure["case"] for figure in figures})
    note = (
        f"{shown} of {len(table)} {table.noun}s: wrong predictions first, the most certain before the others. "
        f"{_count(len(having), f'{table.noun} has', f'{table.noun}s have')} a heatmap."
    )
    if len(figures) > shown:
        note += f" {len(figures)} heatmaps are shown, one a {'slide or class' if table.noun == 'patient' else 'class'}."
    if others:
        note += f" {_count(others, 'heatmap')} of another model than that of the predictions left out; draw them anew."
    return figures, " ".join([note, *unreadable])


def _heatmap_files(folder: Path, name: str, table: Predictions) -> tuple[dict[str, Path], int]:
    """The heatmaps of a case by class, or the only one, whose key is empty; and how many there are of other models."""
    stem = file_stem(name)
    parts = (*table.classes, *map(str, range(len(table.classes))))
    paths = {part: folder / f"{stem}_{part}.h5" for part in parts} | {"": folder / f"{stem}.h5"}
    found = {part: path for part, path in paths.items() if path.is_file()}
    own = {part: path for part, path in found.items() if is_of_model(path, table.model)}
    others = len(found) - len(own)
    if len(own) > 1:
        own.pop("", None)
    return own, others


def _panel(heatmap: Heatmap | ScanHeatmap, sources: Mapping[str, str | Path] | None, count: int) -> Panel | ScanPanel:
    if isinstance(heatmap, ScanHeatmap):
        return make_scan_panel(heatmap, sources, count)
    return make_panel(heatmap, sources, count)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
