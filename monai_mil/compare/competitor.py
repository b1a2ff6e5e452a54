"""One row of a comparison: a bundle, one of its methods, and what of its configs is set otherwise."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_mil.errors import SettingsError
from monai_mil.files import parse_json
from monai_mil.runs import Bundle, find_bundle

_PARTS = {"name", "bundle", "method", "overlays", "settings", "grid"}


@dataclass(frozen=True)
class Competitor:
    """A method as it is compared.

    Attributes:
        name: what its row is called.
        bundle: where its configs are.
        overlays: further configs of the bundle, such as ``anchor``.
        settings: keys of the configs and their values, ``method`` among them.
        grid: further keys, each with the values that are tried.
    """

    name: str
    bundle: Bundle
    overlays: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Its name as a folder."""
        return re.sub(r"[^\w.+=-]+", "_", self.name)

    @property
    def points(self) -> list[dict[str, Any]]:
        """The settings of every point of the grid; one empty one where there is no grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def bag_dir(self, data: Path, shared: Mapping[str, Any]) -> Path:
        """Where its bags are: its own setting, that of all methods, or ``bags`` of the cohort's folder."""
        return Path(self.settings.get("bag_dir") or shared.get("bag_dir") or data / "bags")

    def config(self, name: str) -> dict[str, Any]:
        """One of the bundle's configs, as it stands there; empty where it has none of the name."""
        path = self.bundle.config(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def words(self) -> str:
        """What of the bundle it is, for a table."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        grid = [f"{name} of {', '.join(map(str, values))}" for name, values in self.grid.items()]
        return "; ".join([" + ".join([self.bundle.name, *self.overlays]), *settings, *grid])


def read_competitors(words: Sequence[str], grid: Mapping[str, Sequence[Any]] | None = None) -> list[Competitor]:
    """The methods that somebody names.

    Args:
        words: of each ``BUNDLE``, ``BUNDLE:METHOD`` or ``BUNDLE:METHOD+OVERLAY``, a bundle by its name or folder; or a
            JSON file with ``bundle`` and, where wanted, ``name``, ``method``, ``overlays``, ``settings`` and ``grid``.
        grid: keys with values that are tried of every method besides its own.

    Raises:
        SettingsError: there is no such bundle, overlay or file, or two have one name.

    Examples:
        >>> from monai_mil.compare import read_competitors
        >>> [one.words for one in read_competitors(["mil_baselines:abmil+anchor", "pathology_asmil"])]
        ['mil_baselines + anchor; method=abmil', 'pathology_asmil']
    """
    competitors = [_read(word, grid or {}) for word in words]
    for number, one in enumerate(competitors):
        if any(one.stem == other.stem for other in competitors[:number]):
            raise SettingsError(
                f"two methods are called '{one.name}': give one of them a name of its own in a JSON file"
            )
        for overlay in one.overlays:
            if not one.bundle.has(overlay):
                raise SettingsError(f"method '{one.name}': bundle '{one.bundle.name}' has no configs/{overlay}.json")
    return competitors


def _read(word: str, grid: Mapping[str, Sequence[Any]]) -> Competitor:
    if word.endswith(".json"):
        return _from_file(Path(word), grid)
    place, _, rest = word.partition(":")
    method, *overlays = (rest if rest else place).split("+")
    if not rest:
        place, method = method, ""
    bundle = find_bundle(place)
    name = "+".join([bundle.name + (f":{method}" if method else ""), *overlays])
    return Competitor(name, bundle, tuple(overlays), {"method": method} if method else {}, dict(grid))


def _from_file(path: Path, grid: Mapping[str, Sequence[Any]]) -> Competitor:
    try:
        said = parse_json(path.read_text(encoding="utf-8"))
        unknown = sorted(set(said) - _PARTS)
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; there are {', '.join(sorted(_PARTS))}")
        if "bundle" not in said:
            raise ValueError("no 'bundle'")
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"method '{path}': {error}") from error
    settings = ({"method": said["method"]} if "method" in said else {}) | said.get("settings", {})
    return Competitor(
        said.get("name", path.stem),
        find_bundle(said["bundle"]),
        tuple(said.get("overlays", ())),
        settings,
        {**grid, **said.get("grid", {})},
    )
