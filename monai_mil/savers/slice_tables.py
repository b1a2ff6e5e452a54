"""Rows of the tables that tell of a scan: one a slice, and one of the scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from monai_mil.heatmaps import ScanHeatmap, moments_mm
from monai_mil.savers.prediction import Prediction


def slice_rows(heatmap: ScanHeatmap, scores: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """The rows of a scan's slice table: one for each of ``frame.instances``.

    Args:
        heatmap: the scan. Its attention and labels are those of its slices: cells are empty where these cut across the
            instances.
        scores: columns of scores, each one for every instance.
    """
    frame = heatmap.frame.instances
    columns = {name: [f"{value:.6g}" for value in numbers.tolist()] for name, numbers in scores.items()}
    of_slices = {
        f"attention{name}": [f"{value:.6g}" for value in numbers.tolist()]
        for name, numbers in _attentions(heatmap).items()
    }
    if heatmap.labels is not None:
        of_slices["label"] = ["" if value < 0 else str(value) for value in heatmap.labels.tolist()]
    columns |= of_slices if frame is heatmap.frame else {name: [""] * len(frame) for name in of_slices}
    return [
        {
            "slice": str(index + 1),
            "sop_uid": frame.sop_uids[index],
            "frame": str(frame.frame_numbers[index]),
            "position_mm": f"{position:.4f}",
        }
        | {name: values[index] for name, values in columns.items()}
        for index, position in enumerate(frame.positions_mm.tolist())
    ]


def scan_row(heatmap: ScanHeatmap, prediction: Prediction | None, scan_id: str) -> dict[str, str]:
    """The row of ``scans.csv``."""
    row = {"scan_id": scan_id}
    if prediction is not None:
        given = prediction.row()
        row |= {name: given[name] for name in given if name in ("patient_id", "pred") or name.startswith("prob_")}
    for name, attention in _attentions(heatmap).items():
        (mean,), (std,) = moments_mm(attention[None], heatmap.frame)
        row |= {f"attention_center_mm{name}": f"{mean:.4f}", f"attention_width_mm{name}": f"{std:.4f}"}
    frame, scores = heatmap.frame.instances, heatmap.instance_scores
    peak = int(scores.argmax())
    return row | {
        "highest_slice": str(peak + 1),
        "highest_position_mm": f"{frame.positions_mm[peak]:.4f}",
        "highest_sop_uid": frame.sop_uids[peak],
        "highest_frame": str(frame.frame_numbers[peak]),
        "highest_score": f"{scores[peak]:.6g}",
    }


def _attentions(heatmap: ScanHeatmap) -> dict[str, np.ndarray]:
    """The attention ``[n]`` by the ending of its columns' names: the heads' mean, and each where there are several."""
    if heatmap.attention is None:
        return {}
    heads = heatmap.attention if len(heatmap.attention) > 1 else ()
    return {"": heatmap.attention.mean(axis=0)} | {f"_{head}": values for head, values in enumerate(heads, 1)}
