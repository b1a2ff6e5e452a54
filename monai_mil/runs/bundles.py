"""The bundles that come with the package, and any other bundle's folder, by name or by path."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai_mil.errors import OutputError, SettingsError
from monai_mil.shipped import bundles_folder

_NOT_SHIPPED = ("__pycache__", "eval", "runs", "checkpoints", "verify_model.ts")


@dataclass(frozen=True)
class Bundle:
    """The folder of a MONAI Bundle.

    Attributes:
        root: the folder, which holds ``configs/`` and, where it has weights, ``models/model.pt``.
    """

    root: Path

    @property
    def name(self) -> str:
        """The folder's name, by which the bundle is called."""
        return self.root.name

    @property
    def metadata(self) -> dict[str, Any]:
        """``configs/metadata.json``."""
        return json.loads((self.root / "configs" / "metadata.json").read_text(encoding="utf-8"))

    @property
    def weights(self) -> Path:
        """The weights it comes with, whether they are there or not."""
        return self.root / "models" / "model.pt"

    @property
    def reads(self) -> Literal["slides", "scans"]:
        """What its predictions are made of."""
        return "scans" if self.has("inference_scans") else "slides"

    @property
    def is_shipped(self) -> bool:
        """Whether it came with the package, so that no run writes into it."""
        return self.root.parent == bundles_folder()

    def has(self, config: str) -> bool:
        """Whether it has ``configs/<config>.json``."""
        return self.config(config).is_file()

    def config(self, name: str) -> Path:
        """``configs/<name>.json``."""
        return self.root / "configs" / f"{name}.json"


def shipped_bundles() -> list[Bundle]:
    """The bundles that come with the package, by name.

    Examples:
        >>> from monai_mil.runs import shipped_bundles
        >>> [bundle.name for bundle in shipped_bundles() if bundle.reads == "scans"]
        ['ct_insight', 'ct_normal_guidance']
    """
    folder = bundles_folder()
    return [Bundle(path.parents[1]) for path in sorted(folder.glob("*/configs/metadata.json"))] if folder else []


def find_bundle(name: str | Path) -> Bundle:
    """A bundle by the name of a shipped one, or by its folder.

    Raises:
        SettingsError: there is no such bundle; names those there are.

    Examples:
        >>> from monai_mil.runs import find_bundle
        >>> bundle = find_bundle("pathology_insight")
        >>> bundle.reads, bundle.has("inference_slides"), bundle.is_shipped
        ('slides', True, True)
    """
    shipped = {bundle.name: bundle for bundle in shipped_bundles()}
    if str(name) in shipped:
        return shipped[str(name)]
    folder = Path(name).resolve()
    if (folder / "configs" / "metadata.json").is_file():
        return Bundle(folder)
    known = f", or one of {', '.join(shipped)}" if shipped else "; this installation has none by name"
    raise SettingsError(f"no bundle '{name}': name a folder with configs/metadata.json{known}")


def copy_bundle(bundle: Bundle, folder: Path) -> Path:
    """Copy a bundle to ``folder/<name>``, to be edited there.

    Returns:
        The copy.

    Raises:
        OutputError: it is there already, or cannot be written.
    """
    copy = folder / bundle.name
    if copy.exists():
        raise OutputError(f"'{copy}' exists; remove it or choose another folder")
    try:
        for path in shipped_files(bundle):
            place = copy / path.relative_to(bundle.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)  # not its permissions: it is copied to be edited
    except OSError as error:
        raise OutputError(f"'{copy}' cannot be written: {error.strerror}") from error
    return copy


def shipped_files(bundle: Bundle) -> list[Path]:
    """The files that make up a bundle, without what runs have left in its folder."""
    paths = sorted(path for path in bundle.root.rglob("*") if path.is_file())
    return [path for path in paths if not set(path.relative_to(bundle.root).parts) & set(_NOT_SHIPPED)]
