"""The most suspicious slices of a scan as one picture, the way a radiologist looks at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.files import replacing
from monai_mil.heatmaps.colours import colour_index, colour_table
from monai_mil.heatmaps.decision import is_muted, mute, muted_text
from monai_mil.heatmaps.figure import INK, PAPER, SOFT, Figure, caption, millimetres, score_text, text_font
from monai_mil.heatmaps.scale import Scale, colour_scale
from monai_mil.heatmaps.scan_heatmap import ScanHeatmap
from monai_mil.scans import Scan, ScanFrame, Window

_TRUE = (0, 158, 115)
_TISSUE_GREY = 128
_SAME_PLACE_MM = 0.1
_LETTERS = ("RL", "AP", "FH")
"""What lies at the low and the high end of each patient axis, LPS."""


def export_montage(
    heatmap: ScanHeatmap,
    scan: Scan | str | Path | None,
    path: str | Path,
    *,
    window: Window | str = "40/400",
    slices: int = 8,
    apart_mm: float = 10.0,
    cell: int = 360,
    opacity: float = 0.6,
    title: str | None = None,
) -> Path:
    """Draw the slices of the highest scores, highest first, each with its number, position, score and true mark.

    Slices are shown as radiologists see them, the patient's right on the left, at their true proportions. Slices near
    a shown one are left out, so that one finding does not fill the picture. True slices are framed where the heatmap
    has labels. The smooth map of scores of cells is laid over the slice, coloured from 0 to 1 where all scores lie
    between, with a contour at the threshold, or at the middle of the colours where there is none. A scan below its
    operating point has no contour and pale colours, and the title says so.

    Args:
        heatmap: the scores.
        scan: the scan or its path; None reads it from the path of the heatmap's frame.
        path: the PNG file.
        window: in Hounsfield units: a window, ``"center/width"``, or a preset's name, whose first window is taken.
        slices: most slices to show.
        apart_mm: least distance of two shown slices; less where the scan is too short for ``slices`` of them.
        cell: longest side of a slice's picture in pixels.
        opacity: of the highest score's colour over the slice where scores are of cells, 0 to 1; lower ones are clearer.
        title: first line of the title; default the scan's id.

    Raises:
        ScanReadError: the scan cannot be read, or is another one than the heatmap's.
        SettingsError: there is no such window.
    """
    shown = display_window(window)
    sheet, mm = draw_montage(heatmap, scan, window=shown, slices=slices, apart_mm=apart_mm, cell=cell, opacity=opacity)
    figure = Figure.around(sheet, colour_bar=heatmap.scores.ndim == 3)
    texts = [caption(heatmap.attributes), f"window {window_text(shown)} HU"]
    if heatmap.labels is not None:
        texts.append("true slices are framed")
    texts.append(muted_text(heatmap))
    figure.write_title(title or heatmap.frame.scan_id, "  ·  ".join(filter(None, texts)))
    figure.write_scale_bar(1000 * mm, longest=cell / 2)
    if heatmap.scores.ndim == 3:
        scale, table = _scale(heatmap), _table(heatmap)
        colours = _veil(np.full((256, 3), _TISSUE_GREY), np.arange(256), table, opacity)
        parts = [heatmap.name, colour_text(heatmap), contour_text(heatmap)]
        figure.write_colour_bar(colours, scale.ticks(heatmap.scores), ", ".join(filter(None, parts)))
    figure.write_note(heatmap.attributes.get("note"))
    path = Path(path)
    with replacing(path) as temporary:
        figure.image.save(temporary, format="PNG", compress_level=4)
    return path


def draw_montage(
    heatmap: ScanHeatmap,
    scan: Scan | str | Path | None,
    *,
    window: Window,
    slices: int,
    apart_mm: float = 10.0,
    cell: int = 360,
    opacity: float = 0.6,
) -> tuple[np.ndarray, float]:
    """The slices of :func:`export_montage` without title, RGB uint8 ``[height, width, 3]``, and the mm of a pixel."""
    scan = _open(heatmap, scan)
    chosen = most_suspicious(heatmap.slice_scores, heatmap.frame.positions_mm, slices, apart_mm)
    view = View.of(heatmap.frame, cell)
    columns = min(len(chosen), 4 if len(chosen) > 6 or len(chosen) == 4 else 3)
    rows = -(-len(chosen) // columns)
    gap, strip = round(cell * 0.045), round(cell * 0.15)
    width, height = view.width + gap, view.height + strip + gap
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), PAPER)
    for place, index in enumerate(chosen):
        left, top = gap + place % columns * width, gap + place // columns * height
        picture = _picture(heatmap, window.apply(scan.hu[index]), index, view, opacity)
        sheet.paste(Image.fromarray(picture), (left, top))
        _annotate(ImageDraw.Draw(sheet), heatmap, index, view, (left, top), cell)
    return np.asarray(sheet), view.mm


def most_suspicious(scores: np.ndarray, positions: np.ndarray, count: int, apart_mm: float) -> list[int]:
    """Indices of up to ``count`` slices of the highest scores, highest first, none near another (see export_montage).

    Args:
        scores: ``[n]``.
        positions: of the slices, mm, ascending, ``[n]``.
        count: most slices.
        apart_mm: least distance of two.
    """
    if len(scores) <= count:
        return np.argsort(-scores, kind="stable").tolist()
    # a choice rules out less than twice this distance, so count of them always find room
    apart = min(apart_mm, float(positions[-1] - positions[0]) / (2 * count))
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) == count:
            break
        if all(abs(positions[index] - positions[other]) >= apart for other in chosen):
            chosen.append(index)
    return chosen


def display_window(window: Window | str) -> Window:
    """The window itself, ``"center/width"`` in HU, or the first window of a slice preset.

    Raises:
        SettingsError: no such preset, or it has no window.
    """
    from monai_mil.scans import slice_preset

    if isinstance(window, Window):
        return window
    preset = slice_preset(window)
    if not preset.windows:
        raise SettingsError(f"slice preset '{window}': it has no window to show; give one as 'center/width'")
    return preset.windows[0]


def window_text(window: Window) -> str:
    """``center/width`` in HU, as :func:`display_window` reads it."""
    return f"{window.center:g}/{window.width:g}"


@dataclass(frozen=True)
class View:
    """How the slices of one scan are shown: turned to the radiological view and to square pixels.

    Attributes:
        transpose: rows become columns first.
        flip: then rows (first) and columns (second) are reversed.
        width: of the picture in pixels.
        height: of the picture in pixels.
        mm: of a pixel of the picture.
        letters: of the patient's side at the picture's left, right, top and bottom.
    """

    transpose: bool
    flip: tuple[bool, bool]
    width: int
    height: int
    mm: float
    letters: tuple[str, str, str, str]

    @classmethod
    def of(cls, frame: ScanFrame, cell: int) -> View:
        """The view of a scan's slices, the longest side of the picture being ``cell`` pixels.

        Left to right of it runs to the patient's left (sagittal: to the back), top to bottom to the back (coronal and
        sagittal: to the feet), for the patient's axes that the slice's own directions are nearest to.
        """
        along_row, along_column = frame.orientation
        first = int(np.abs(along_row).argmax())
        second = max((axis for axis in range(3) if axis != first), key=lambda axis: abs(along_column[axis]))
        across, down, extent = (
            along_row,
            along_column,
            (frame.size[0] * frame.spacing[0], frame.size[1] * frame.spacing[1]),
        )
        transpose = first > second
        if transpose:
            across, down, first, second = down, across, second, first
            extent = extent[::-1]
        flip = (bool((down[second] > 0) == (second == 2)), bool(across[first] < 0))
        mm = max(extent) / cell
        vertical = _LETTERS[second][::-1] if second == 2 else _LETTERS[second]
        return cls(transpose, flip, round(extent[1] / mm), round(extent[0] / mm), mm, (*_LETTERS[first], *vertical))

    def show(self, values: np.ndarray, *, smooth: bool = True) -> np.ndarray:
        """Values of a slice's pixels ``[rows, columns]`` as the picture's ``[height, width]``."""
        import cv2

        turned = values.T if self.transpose else values
        turned = np.ascontiguousarray(turned[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1])
        shrinks = self.width * self.height < turned.size
        how = (cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC) if smooth else cv2.INTER_NEAREST_EXACT
        return cv2.resize(turned, (self.width, self.height), interpolation=how)


def _open(heatmap: ScanHeatmap, scan: Scan | str | Path | None) -> Scan:
    frame = heatmap.frame
    if not isinstance(scan, Scan):
        from monai_mil.scans import load_scan

        source = scan or frame.path
        if source is None or not Path(source).exists():
            raise ScanReadError(f"scan '{frame.scan_id}': its file or folder was not found; give the path of the scan")
        scan = load_scan(
            source,
            series_uid=frame.series_uid or None,
            acquisition=frame.acquisition or None,
            allow_gaps=True,
        )
    same_slices = scan.frame.size == frame.size and scan.frame.sop_uids == frame.sop_uids and len(scan) == len(frame)
    if not same_slices or not np.allclose(scan.frame.origins, frame.origins, atol=_SAME_PLACE_MM):
        raise ScanReadError(
            f"scan '{scan.scan_id}': its slices are not those of the heatmap of '{frame.scan_id}'; give the same scan"
        )
    return scan


def _picture(heatmap: ScanHeatmap, grey: np.ndarray, index: int, view: View, opacity: float) -> np.ndarray:
    import cv2

    shown = (view.show(grey).clip(0, 1) * 255).round().astype(np.uint8)
    picture = np.repeat(shown[..., None], 3, axis=2)
    if heatmap.scores.ndim == 1:
        return picture
    scale = _scale(heatmap)
    values = view.show(scale.values(heatmap.slice_map(index, smooth=True)))
    picture = _veil(picture, colour_index(values, scale.limits), _table(heatmap), opacity)
    above = replace(heatmap, threshold=_level(heatmap)).foreground(index)
    outlines, _ = cv2.findContours(
        (view.show(above.astype(np.float32)) > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    picture = np.ascontiguousarray(picture)
    for colour, width in ((INK, 4), (PAPER, 2)):  # seen on dark and on white tissue
        cv2.drawContours(picture, outlines, -1, colour, width)
    return picture


def _scale(heatmap: ScanHeatmap) -> Scale:
    return colour_scale(heatmap.scores, heatmap.attributes)


def _table(heatmap: ScanHeatmap) -> np.ndarray:
    return mute(colour_table("inferno")) if is_muted(heatmap) else colour_table("inferno")


def _veil(picture: np.ndarray, steps: np.ndarray, table: np.ndarray, opacity: float) -> np.ndarray:
    """Lay colours over RGB values; the lower the step (0 to 255), the clearer, so that low scores hide nothing."""
    weight = (opacity * steps / 255)[..., None]
    return (weight * table[steps] + (1 - weight) * picture).astype(np.uint8)


def colour_text(heatmap: ScanHeatmap) -> str:
    """What the colours on the slices mean, in words; empty where scores are of slices, which have none."""
    return "" if heatmap.scores.ndim == 1 else str(heatmap.attributes.get("meaning", _scale(heatmap).meaning))


def contour_text(heatmap: ScanHeatmap) -> str:
    """What the contour on the slices means, in words; empty where there is none."""
    level = _level(heatmap)
    return "" if heatmap.scores.ndim == 1 or not np.isfinite(level) else f"contour at {level:.3g}"


def _level(heatmap: ScanHeatmap) -> float:
    """The score at which contours are drawn."""
    if heatmap.threshold is not None:
        return heatmap.threshold
    return np.inf if is_muted(heatmap) else float(np.mean(_scale(heatmap).limits))


def _annotate(
    draw: ImageDraw.ImageDraw, heatmap: ScanHeatmap, index: int, view: View, corner: tuple[int, int], cell: int
) -> None:
    (left, top), width, height = corner, view.width, view.height
    small, plain = text_font(max(11, cell * 0.04)), text_font(max(11, cell * 0.042), bold=True)
    inset = cell * 0.02
    places = (
        ((left + inset, top + height / 2), "lm"),
        ((left + width - inset, top + height / 2), "rm"),
        ((left + width / 2, top + inset), "mt"),
        ((left + width / 2, top + height - inset), "mb"),
    )
    for letter, (place, anchor) in zip(view.letters, places, strict=True):
        draw.text(place, letter, font=small, fill=PAPER, anchor=anchor, stroke_width=1, stroke_fill=INK)
    n, position = len(heatmap), heatmap.frame.positions_mm[index]
    y = top + height + cell * 0.025
    draw.text((left, y), f"slice {index + 1} of {n}", font=plain, fill=INK)
    draw.text((left + width, y), millimetres(position), font=small, fill=SOFT, anchor="ra")
    y += cell * 0.06
    draw.text((left, y), f"{heatmap.name} {score_text(float(heatmap.slice_scores[index]))}", font=small, fill=INK)
    if heatmap.labels is not None and heatmap.labels[index] == 1:
        line = max(3, round(cell * 0.012))
        draw.rectangle(
            (left - line, top - line, left + width + line - 1, top + height + line - 1), outline=_TRUE, width=line
        )
        draw.text((left + width, y), "true slice", font=plain, fill=_TRUE, anchor="ra")
