"""Where the bundles lie that come with the package, and where a bundle's own folder is when nobody says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "monai_mil_bundles"
"""What a wheel calls the folder ``bundles/``."""
_BESIDE = Path(__file__).resolve().parents[1]


def bundles_folder() -> Path | None:
    """Where the shipped bundles lie: ``bundles/`` of a clone, else the package ``monai_mil_bundles`` of a wheel.

    None where neither is there: within a bundle that was exported for the zoo.
    """
    if (_BESIDE / "bundles" / "mil_baselines" / "configs").is_dir():
        return _BESIDE / "bundles"
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def bundle_configs(root: str | Path, name: str) -> Path:
    """The folder ``configs`` of a bundle.

    ``monai.bundle.load`` tells a config nothing of where it lies: its ``bundle_root`` is then the working folder, and
    the bundle is the one that the package was exported with, or the shipped one.

    Args:
        root: the bundle's folder as a config knows it.
        name: the bundle's.
    """
    shipped = bundles_folder()
    places = [Path(root), _BESIDE, *([] if shipped is None else [shipped / name])]
    found = [place / "configs" for place in places if (place / "configs" / "metadata.json").is_file()]
    return found[0] if found else Path(root) / "configs"
