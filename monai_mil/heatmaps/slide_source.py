"""The slide behind a heatmap: opened only if it is the one whose tiles were scored."""

from __future__ import annotations

from pathlib import Path

from monai_mil.errors import SlideReadError
from monai_mil.heatmaps.heatmap import SlideFrame
from monai_mil.identity import content_identity
from monai_mil.slides import Slide, open_slide, slide_files


def open_scored_slide(frame: SlideFrame, path: str | Path) -> Slide:
    """Open the slide at ``path`` for scores in ``frame``.

    Raises:
        SlideReadError: it cannot be opened, or is another slide than the scores are of; names it.
    """
    if frame.source is not None and content_identity(slide_files(path)) != frame.source:
        raise SlideReadError(
            f"slide '{path}': not the one whose tiles were scored, it was replaced or has the same name; embed and "
            "predict it again"
        )
    return open_slide(path, mpp=frame.mpp, series=frame.series, plane=frame.plane)
