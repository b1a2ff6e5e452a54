"""What a job delivers: the files of the run under names that name nobody, and ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_mil import __version__
from monai_mil.deploy.job import Job
from monai_mil.deploy.logs import Redaction
from monai_mil.deploy.prediction import CASE, Answer
from monai_mil.deploy.selection import Source
from monai_mil.errors import OutputError
from monai_mil.files import make_folder, write_error, write_json
from monai_mil.runs import Bundle

RESULT = "result.json"
RESEARCH_USE = "For research use only; not for clinical decisions."
_ALONE = {"heatmaps": "heatmap", "slices": "slices"}
_KEPT_BACK = {".h5"}
"""Heatmaps in our own format name the path they were made of."""


def deliver(answer: Answer, source: Source, job: Job, bundle: Bundle, folder: Path, redaction: Redaction) -> Path:
    """Put the run's files and ``result.json`` into ``folder``.

    Returns:
        ``folder``.

    Raises:
        OutputError: a file cannot be written.
    """
    make_folder(folder)
    try:
        for path in _files(answer.folder):
            path.rename(folder / _plain_name(path))
    except OSError as error:
        raise write_error(folder, error) from error
    written = sorted(path.name for path in folder.iterdir())
    if not written:
        raise OutputError("the run wrote no file")
    write_json(result(answer, job, bundle, redaction) | {"files": written}, folder / RESULT)
    return folder


def result(answer: Answer, job: Job, bundle: Bundle, redaction: Redaction) -> dict[str, Any]:
    """What ``result.json`` says of an answer."""
    prediction = answer.prediction
    points: Mapping[str, float] | None = None
    if prediction.operating_points is not None:
        points = dict(zip(prediction.classes, prediction.operating_points, strict=True))
    return {
        "format": 1,
        "use": RESEARCH_USE,
        "application": f"monai-mil {job.modality}",
        "version": __version__,
        "bundle": bundle.name,
        "bundle_version": bundle.metadata["version"],
        "model": answer.model,
        "note": answer.note,
        "prediction": prediction.text or "none",
        "probabilities": dict(zip(prediction.classes, map(float, prediction.prob), strict=True)),
        "operating_points": points,
        "operating_point_rule": answer.rule,
        "remarks": redaction.of(prediction.remarks),
    }


def _files(run: Path) -> list[Path]:
    """The files of a run that are delivered."""
    places = (run / "heatmaps", run / "slices")
    found = sorted(path for place in places if place.is_dir() for path in place.iterdir() if path.is_file())
    return [path for path in found if path.suffix not in _KEPT_BACK and not path.name.startswith(".")]


def _plain_name(path: Path) -> str:
    """A file's name without that of the case: ``case_montage.png`` is ``montage.png``, ``case.png`` ``heatmap.png``."""
    rest = path.name.removeprefix(CASE)
    return _ALONE[path.parent.name] + rest if rest.startswith(".") else rest.removeprefix("_")
