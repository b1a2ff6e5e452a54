"""Instance scores in the slide's own coordinates: the one object every export starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.bags import find_dataset
from monai_mil.errors import BagError
from monai_mil.files import replacing_hdf5
from monai_mil.heatmaps.raster import Overlap, paint
from monai_mil.sealed import open_hdf5

FORMAT = "monai-mil heatmap 1"


@dataclass(frozen=True)
class SlideFrame:
    """Where a slide's tiles lie.

    Attributes:
        slide_id: name of the slide in tables and files.
        slide_path: the slide file, None where it is unknown.
        level0_size: width and height of the slide in level-0 pixels.
        mpp: micrometres per level-0 pixel.
        tile_size_level0: side of a tile's field of view in level-0 pixels, exact and therefore often fractional.
        bounds: x, y, width and height of the scanned part in level-0 pixels (``slides.slide_bounds``), to which QuPath
            crops; None where it is unknown.
        source: what the slide is by its content (``BagInfo.source``); None where it is unknown.
        series: which image of a file with several was scored; None for the largest.
        plane: which focal plane, likewise; None for the middle one.
    """

    slide_id: str
    slide_path: str | None
    level0_size: tuple[int, int]
    mpp: float
    tile_size_level0: float
    bounds: tuple[int, int, int, int] | None = None
    source: str | None = None
    series: int | None = None
    plane: int | None = None

    def __post_init__(self) -> None:
        width, height = (int(side) for side in self.level0_size)
        if width < 1 or height < 1:
            raise ValueError(
                f"heatmap of '{self.slide_id}': the slide's size is {width} x {height}; it must be positive"
            )
        for name, value in (("mpp", self.mpp), ("tile_size_level0", self.tile_size_level0)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"heatmap of '{self.slide_id}': {name} is {value}; it must be a positive number")
        object.__setattr__(self, "level0_size", (width, height))
        if self.bounds is not None:
            x, y, width, height = map(int, self.bounds)
            object.__setattr__(self, "bounds", (x, y, width, height))
        object.__setattr__(self, "mpp", float(self.mpp))
        object.__setattr__(self, "tile_size_level0", float(self.tile_size_level0))
        object.__setattr__(self, "slide_path", None if self.slide_path is None else str(self.slide_path))


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Scores of a slide's tiles in level-0 coordinates; make one with :func:`assemble`.

    Attributes:
        frame: the slide the tiles belong to.
        coords: upper-left corner (x, y) of every tile in level-0 pixels, int64 ``[n, 2]``.
        scores: one score a tile, float32 ``[n]``, or a block of ``h x w`` cells a tile, ``[n, h, w]``, row by row.
        name: what the scores are, as a reader of the figure should see it ("attention").
        attributes: anything else worth keeping, JSON-able (prediction, class, network).
        threshold: scores strictly above are foreground; infinite where the slide has none, None where nobody said.
    """

    frame: SlideFrame
    coords: np.ndarray
    scores: np.ndarray
    name: str = "attention"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def tile_scores(self) -> np.ndarray:
        """One score a tile, float32 ``[n]``: the scores, or the maximum of each tile's block."""
        return self.scores if self.scores.ndim == 1 else self.scores.max(axis=(1, 2))

    def percentiles(self) -> np.ndarray:
        """Percentile of every score within the slide, same shape as ``scores``; see :func:`percentile_ranks`."""
        return percentile_ranks(self.scores)

    def raster(
        self,
        *,
        canvas_max: int | None = None,
        downsample: float | None = None,
        overlap: Overlap = "max",
        percentile: bool = False,
        colours: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draw the scores on the whole slide's frame.

        A pixel takes the score of the tile (or cell of a tile's block) that holds its centre in level-0 coordinates,
        so no tile is moved to the pixel grid. A tile too small to hold any centre is drawn on the pixel its own
        centre lies in.

        Args:
            canvas_max: longest side of the canvas in pixels; the canvas covers the slide exactly.
            downsample: level-0 pixels per canvas pixel; the last row and column may reach past the slide. Give
                exactly one of the two.
            overlap: how scores of overlapping tiles are combined, ``max`` or ``mean``.
            percentile: draw percentiles (0 to 100) in place of scores.
            colours: draw what it makes of the scores in place of them, see :class:`monai_mil.heatmaps.Colouring`.

        Returns:
            float32 ``[height, width]``, NaN where no tile lies; with ``colours`` its type, ``[height, width, ...]``.
        """
        shape, scale = canvas_geometry(self.frame.level0_size, canvas_max=canvas_max, downsample=downsample)
        scores = self.percentiles() if percentile else self.scores
        return paint(
            self.coords, scores, self.frame.tile_size_level0, shape=shape, scale=scale, overlap=overlap, colours=colours
        )

    def save(self, path: str | Path) -> Path:
        """Write the heatmap to ``path`` (HDF5) under a temporary name, then rename it; returns the path."""
        path = Path(path)
        with replacing_hdf5(path) as file:
            file.attrs["format"] = FORMAT
            file.attrs["name"] = self.name
            file.attrs["frame"] = json.dumps(asdict(self.frame))
            file.attrs["attributes"] = json.dumps(dict(self.attributes))
            if self.threshold is not None:
                file.attrs["threshold"] = self.threshold
            file["coords"] = self.coords
            file["scores"] = self.scores
        return path

    @classmethod
    def load(cls, path: str | Path) -> Heatmap:
        """Read what :meth:`save` wrote.

        Raises:
            BagError: the file is missing, damaged or not a heatmap.
        """
        try:
            with open_hdf5(Path(path)) as file:
                if file.attrs.get("format") != FORMAT:
                    raise BagError(
                        f"heatmap '{path}': not a heatmap file of this version; make it again with inference"
                    )
                frame = json.loads(file.attrs["frame"])
                attributes = json.loads(file.attrs["attributes"])
                coords, scores = (find_dataset(Path(path), file, name, "heatmap")[:] for name in ("coords", "scores"))
                name = str(file.attrs["name"])
                threshold = float(file.attrs["threshold"]) if "threshold" in file.attrs else None
            return assemble(scores, coords, SlideFrame(**frame), name=name, attributes=attributes, threshold=threshold)
        except BagError:
            raise
        except Exception as error:  # HDF5 and JSON raise many kinds of errors for damaged files
            raise BagError(f"heatmap '{path}': cannot be read ({error}); make it again with inference") from error


def assemble(
    scores: Any,
    coords: Any,
    frame: SlideFrame,
    *,
    name: str = "attention",
    attributes: Mapping[str, Any] | None = None,
    threshold: float | None = None,
) -> Heatmap:
    """Join instance scores with the tiles they belong to.

    Args:
        scores: ``[n]`` or ``[n, h, w]``, an array or a tensor on any device.
        coords: ``[n, 2]``, x and y of every tile's upper-left corner in level-0 pixels.
        frame: the slide.
        name: what the scores are.
        attributes: JSON-able facts kept with the heatmap.
        threshold: scores strictly above are foreground; infinite for none.

    Raises:
        ValueError: no tile, shapes that do not fit, a score that is not finite, a threshold that is no number, or a
            tile wholly outside the slide.

    Examples:
        >>> from monai_mil.heatmaps import SlideFrame, assemble
        >>> frame = SlideFrame("S-1", None, level0_size=(512, 256), mpp=0.5, tile_size_level0=256.0)
        >>> heatmap = assemble([0.2, 0.8], [[0, 0], [256, 0]], frame)
        >>> heatmap.percentiles()
        array([ 50., 100.], dtype=float32)
    """
    scores = np.ascontiguousarray(to_numpy(scores), dtype=np.float32)
    coords = np.ascontiguousarray(to_numpy(coords), dtype=np.int64)
    where = f"heatmap of '{frame.slide_id}'"
    if scores.ndim not in (1, 3) or coords.shape != (len(scores), 2):
        raise ValueError(
            f"{where}: scores have shape {list(scores.shape)} and coords {list(coords.shape)}; "
            "expected [n] or [n, h, w], and [n, 2]"
        )
    if scores.size == 0:
        raise ValueError(f"{where}: there are no scores")
    if threshold is not None and np.isnan(threshold):
        raise ValueError(f"{where}: the threshold is not a number")
    if not np.isfinite(scores).all():
        bad = int(np.argwhere(~np.isfinite(scores))[0, 0])
        raise ValueError(f"{where}: the score of tile {bad} at {tuple(coords[bad].tolist())} is not finite")
    outside = ((coords + frame.tile_size_level0 <= 0) | (coords >= frame.level0_size)).any(axis=1)
    if outside.any():
        bad = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"{where}: tile {bad} at {tuple(coords[bad].tolist())} lies outside the slide of "
            f"{frame.level0_size[0]} x {frame.level0_size[1]} pixels; coords must be x, y in level-0 pixels"
        )
    return Heatmap(frame, coords, scores, name, dict(attributes or {}), None if threshold is None else float(threshold))


def percentile_ranks(scores: np.ndarray) -> np.ndarray:
    """Percentage of scores that are no larger, ties sharing their mean rank; float32, same shape, in (0, 100].

    Equals ``100 * scipy.stats.rankdata(scores) / scores.size`` in one sort.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.heatmaps import percentile_ranks
        >>> percentile_ranks(np.array([0.1, 0.3, 0.2]))
        array([ 33.333332, 100.      ,  66.666664], dtype=float32)
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return (100 / scores.size * mean_rank).astype(np.float32)[inverse].reshape(scores.shape)


def canvas_geometry(
    level0_size: tuple[int, int], *, canvas_max: int | None = None, downsample: float | None = None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Canvas shape (height, width) and its scale (level-0 pixels per canvas pixel in x and y)."""
    width, height = level0_size
    if (canvas_max is None) == (downsample is None):
        raise ValueError("give exactly one of canvas_max and downsample")
    if downsample is not None:
        if downsample <= 0:
            raise ValueError(f"downsample is {downsample}; it must be positive")
        return (int(np.ceil(height / downsample)), int(np.ceil(width / downsample))), (downsample, downsample)
    assert canvas_max is not None
    factor = canvas_max / max(width, height)
    columns, rows = max(1, round(width * factor)), max(1, round(height * factor))
    return (rows, columns), (width / columns, height / rows)


def to_numpy(values: Any) -> np.ndarray:
    """A tensor of any device and type, an array or a list as an array; half precision becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() and values.itemsize < 4 else values.numpy()
    return np.asarray(values)
