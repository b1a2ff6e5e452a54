"""Which pages of a TIFF are the slide: its levels, its other scenes and focal planes, and what is none of these."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_ASIDE = r"(?:label|macro|thumbnail|overview)"
_POWERS = tuple(2**power for power in range(1, 13))
_WHOLE = 0.005
"""How far a ratio of resolution tags, which are rounded, may lie from the whole number that is meant."""


@dataclass(frozen=True)
class LevelPage:
    """A page that is a level; ``downsample`` is level-0 pixels per pixel along x and y."""

    page: Any
    downsample: tuple[float, float]

    def inside(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the part that shows a slide of ``size`` level-0 pixels; the rest is padding."""
        return without_padding(size, (self.page.imagewidth, self.page.imagelength), self.downsample)


def without_padding(size: tuple[int, int], stored: tuple[int, int], downsample: tuple[float, float]) -> tuple[int, int]:
    """Width and height of the part of a stored level that shows a slide of ``size`` level-0 pixels."""
    width, height = (
        max(1, min(pixels, math.ceil(side / factor - 1e-6)))
        for side, pixels, factor in zip(size, stored, downsample, strict=True)
    )
    return width, height


@dataclass
class Scene:
    """One image of a TIFF with its levels.

    Attributes:
        planes: the levels of every focal plane, finest first.
        name: what the file calls it.
        ome_index: its number among the images of the OME metadata.
        refusal: why it cannot be shown in colour, whatever its pixels.
    """

    planes: list[list[LevelPage]]
    name: str = ""
    ome_index: int | None = None
    refusal: str | None = None
    followers: list[Any] = field(default_factory=list)

    @property
    def base(self) -> Any:
        """The page of level 0."""
        return self.planes[0][0].page

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.base.imagewidth, self.base.imagelength


def find_scenes(tiff: Any) -> tuple[list[Scene], int]:
    """The scenes of a file, labels and thumbnails apart, in file order, and which of them is the largest.

    Raises:
        ValueError: there is no page.
    """
    pages = [page for page in tiff.pages if page.imagewidth and page.imagelength]
    if not pages:
        raise ValueError("it has no image")
    scenes = _ome_scenes(tiff, pages) if tiff.is_ome else _plain_scenes(pages)
    main = max(scenes, key=lambda scene: math.prod(scene.size))
    like_main = [scene for scene in scenes if scene is main or tiff.is_ome or _is_like(scene.base, main.base)]
    return like_main, like_main.index(main)


def _plain_scenes(pages: Sequence[Any]) -> list[Scene]:
    named = [page for page in pages if not _is_aside(page)] or list(pages)
    mains = [page for page in named if not page.is_reduced] or [max(named, key=_area)]
    scenes: dict[int, Scene] = {}
    for page in sorted(mains, key=_area, reverse=True):
        home = next((scene for scene in scenes.values() if _is_unflagged_level(page, scene.base)), None)
        if home is None:
            scenes[page.index] = Scene([[LevelPage(page, (1.0, 1.0))]], str(page.tags.valueof(285, "")))
        else:
            home.followers.append(page)
    for page in named:
        if page.is_reduced and page.index not in scenes:
            before = sorted((index for index in scenes if index < page.index), reverse=True)
            after = sorted(index for index in scenes if index > page.index)
            homes = (scenes[index] for index in (*before, *after))
            home = next((scene for scene in homes if _downsample(page, scene.base) is not None), None)
            if home is not None:
                home.followers.append(page)
    for scene in scenes.values():
        followers = [*scene.followers, *(scene.base.pages or () if scene.base.subifds else ())]
        scene.planes = [_levels(scene.base, followers)]
    return [scenes[index] for index in sorted(scenes)]


def _ome_scenes(tiff: Any, pages: Sequence[Any]) -> list[Scene]:
    scenes = []
    for index, series in enumerate(tiff.series):
        if series.kind != "ome" or re.search(rf"\b{_ASIDE}\b", series.name.lower().replace("_", " ")):
            continue
        leading = dict(zip(series.axes, series.shape, strict=True))
        for axis in "YXS":
            leading.pop(axis, None)
        channels = leading.pop("C", 1)
        planes = [
            [level.pages[plane] for level in series.levels if plane < len(level.pages)]
            for plane in range(math.prod(leading.values()) if channels == 1 else 1)
        ]
        here = [[page for page in plane if page is not None and page.parent is tiff] for plane in planes]
        found = [[page.aspage() for page in plane] for plane in here]
        found = [plane for plane in found if plane]
        if not found:
            continue
        scene = Scene([_levels(plane[0], plane[1:]) for plane in found], series.name, index)
        if channels > 1:
            scene.refusal = f"it has {channels} channels, which are no colours"
        scenes.append(scene)
    if not scenes:
        return _plain_scenes(pages)
    used = {page.page.index for scene in scenes for plane in scene.planes for page in plane}
    if len(scenes) == 1 and len(scenes[0].planes) == 1 and not scenes[0].base.subifds:
        loose = [page for page in pages if page.is_reduced and page.index not in used and not _is_aside(page)]
        scenes[0].planes = [_levels(scenes[0].base, [*(level.page for level in scenes[0].planes[0][1:]), *loose])]
    return _without_levels(scenes)


def _without_levels(scenes: list[Scene]) -> list[Scene]:
    """Scenes of which those that are coarser levels of another, by size and resolution, have become its levels."""
    kept: list[Scene] = []
    for scene in sorted(scenes, key=lambda scene: math.prod(scene.size), reverse=True):
        home = next((other for other in kept if _is_unflagged_level(scene.base, other.base)), None)
        if home is None or len(scene.planes) != len(home.planes):
            kept.append(scene)
            continue
        for plane, (own, more) in enumerate(zip(home.planes, scene.planes, strict=True)):
            home.planes[plane] = _levels(own[0].page, [level.page for level in (*own[1:], *more)])
    return sorted(kept, key=lambda scene: scene.ome_index or 0)


def _levels(base: Any, followers: Sequence[Any]) -> list[LevelPage]:
    levels = [LevelPage(base, (1.0, 1.0))]
    for page in sorted(followers, key=_area, reverse=True):
        downsample = _downsample(page, base)
        last = levels[-1].page
        is_smaller = page.imagewidth <= last.imagewidth and page.imagelength <= last.imagelength
        if downsample is not None and page.is_tiled and is_smaller and _area(page) < _area(last):
            levels.append(LevelPage(page, downsample))
    return levels


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def _is_aside(page: Any) -> bool:
    """Whether the page says of itself that it is a label, macro, thumbnail or overview, or the mask of another."""
    description = page.description[:10_000]
    lines = description.splitlines() or [""]
    first = lines[1] if description.startswith("Aperio") and len(lines) > 1 else lines[0]
    name = str(page.tags.valueof(285, ""))
    return bool(
        page.is_mask
        or re.match(rf"\s*{_ASIDE}\b", first.lower())
        or re.search(rf"\b{_ASIDE}\b", name.lower().replace("_", " "))
        or re.search(rf"<imagetype>\s*{_ASIDE}", description.lower())
    )


def _is_like(page: Any, main: Any) -> bool:
    """Whether an image is another scene or focal plane beside the main one, by its resolution or its size."""
    if not page.is_tiled:
        return False
    if (page.imagewidth, page.imagelength) == (main.imagewidth, main.imagelength):
        return True
    own, other = _resolution(page), _resolution(main)
    if own is None or other is None or own[2] != other[2] or own[2] == 1:
        return False
    return all(0.5 <= a / b <= 2 for a, b in zip(own[:2], other[:2], strict=True))


def _is_unflagged_level(page: Any, base: Any) -> bool:
    """Whether a page that no flag calls reduced is so: its resolution says so, or Aperio's way of writing levels."""
    if _downsample(page, base) is None:
        return False
    return _told_ratio(page, base) is not None or base.description.startswith("Aperio")


def _downsample(page: Any, base: Any) -> tuple[float, float] | None:
    """Pixels of ``base`` per pixel of ``page`` along x and y, or None if both cannot show the same field of view.

    Resolution tags that differ decide; else both axes have to shrink by the same factor. A level padded to whole tiles
    has the factor of its tags, or the whole number nearest to what its size says.
    """
    if _area(page) >= _area(base):
        return None
    size, sides = (base.imagewidth, base.imagelength), (page.imagewidth, page.imagelength)
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else (1, 1)
    return fit_level(size, sides, tile, _told_ratio(page, base))


def fit_level(
    size: tuple[int, int], sides: tuple[int, int], tile: tuple[int, int], told: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Level-0 pixels per pixel of a level along x and y, or None if it cannot show the slide's field of view.

    Args:
        size: width and height of level 0 in pixels.
        sides: of the level, with its padding.
        tile: of the level's stored tiles.
        told: the ratio of the pixel sizes, where the file has it.
    """
    natural = size[0] / sides[0], size[1] / sides[1]
    if told is not None:
        axes = list(zip(size, sides, told, tile, strict=True))
        if not all(_covers(*axis) for axis in axes):
            return None
        return told if any(_is_padded(*axis) for axis in axes) else natural
    for factor in _whole_factors(natural):
        if all(abs(side / factor - pixels) < 1 for side, pixels in zip(size, sides, strict=True)):
            return natural
    for factor in _whole_factors(natural):
        axes = [(side, pixels, float(factor), t) for side, pixels, t in zip(size, sides, tile, strict=True)]
        if all(_is_padded(*axis) or abs(axis[0] / factor - axis[1]) < 1 for axis in axes):
            return float(factor), float(factor)
    if natural[0] > 1 and abs(size[1] / natural[0] - sides[1]) <= 1 + 0.02 * sides[1]:
        return natural
    return None


def _whole_factors(natural: tuple[float, float]) -> Iterator[int]:
    """Whole numbers near the ratio of sizes; powers of two first."""
    least, most = math.floor(min(natural)), math.ceil(2 * max(natural))
    powers = [power for power in _POWERS if least <= power <= most]
    yield from powers
    yield from (factor for factor in range(max(2, least), min(most, least + 64) + 1) if factor not in powers)


def _covers(side: int, pixels: int, factor: float, tile: int) -> bool:
    return abs(side / factor - pixels) <= 1 + 0.01 * pixels or _is_padded(side, pixels, factor, tile)


def _is_padded(side: int, pixels: int, factor: float, tile: int) -> bool:
    """Whether a level ends in part of a tile that the slide does not reach."""
    return pixels % tile == 0 and 1 <= pixels - side / factor < tile


def _told_ratio(page: Any, base: Any) -> tuple[float, float] | None:
    """Pixels of ``base`` per pixel of ``page`` by their resolution tags; None where these say nothing."""
    fine, coarse = _resolution(base), _resolution(page)
    if fine is None or coarse is None or fine[2] != coarse[2]:
        return None
    ratio = fine[0] / coarse[0], fine[1] / coarse[1]
    if max(abs(factor - 1) for factor in ratio) < _WHOLE:  # copied from level to level
        return None
    x, y = (float(round(f)) if abs(f / max(1, round(f)) - 1) < _WHOLE else f for f in ratio)
    return x, y


def _resolution(page: Any) -> tuple[float, float, int] | None:
    """Pixels per unit along x and y, and the unit."""
    try:
        unit = int(page.tags.valueof("ResolutionUnit", 2))
        x, y = (page.tags.valueof(name) for name in ("XResolution", "YResolution"))
        pixels = float(np.divide(*x)), float(np.divide(*y))
    except (TypeError, ValueError):
        return None
    if not all(0 < value < math.inf for value in pixels):
        return None
    return None if unit == 1 and pixels == (1, 1) else (*pixels, unit)
