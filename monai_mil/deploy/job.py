"""One job of an application: what it reads, with which bundle, where its results go, and how it can end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from monai_mil.errors import CohortError, MonaiMILError, OutputError, ScanReadError, SettingsError, SlideReadError
from monai_mil.files import parse_json
from monai_mil.runs import FORMATS, Bundle, find_bundle

Modality = Literal["ct", "slide"]
READS = {"ct": "scans", "slide": "slides"}
"""What bundles of an application read."""
_LISTED = {
    "series": "of rules",
    "operating_points": "as many numbers as the model's own",
    "objects": "of names of DICOM objects",
    "pictures": "of names of formats",
}
_KEYS = ("series", "operating_points", "objects", "pictures", "settings", "terms")


class Exit(IntEnum):
    """How an application ends: its exit code, by cause."""

    OK = 0
    USAGE = 2
    NO_INPUT = 3
    INVALID_INPUT = 4
    INFERENCE = 5
    OUTPUT = 6


class JobError(MonaiMILError):
    """A job that ends without a result, for a cause that has an exit code.

    Attributes:
        exit_code: the cause.
    """

    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> Exit:
    """The cause that an error stands for."""
    if isinstance(error, JobError):
        return error.exit_code
    if isinstance(error, (SettingsError, CohortError)):  # class names or operating points that fit no model
        return Exit.USAGE
    if isinstance(error, (ScanReadError, SlideReadError)):
        return Exit.INVALID_INPUT
    return Exit.OUTPUT if isinstance(error, OutputError) else Exit.INFERENCE


@dataclass(frozen=True)
class DeployConf:
    """``configs/deploy.json`` of a bundle: what an application does with it that no other run does.

    Attributes:
        series: of scans the rules that a series must meet, best first; see :func:`monai_mil.deploy.choose_series`.
        operating_points: in place of those of the model; None takes the model's own.
        objects: DICOM objects to write where the source is DICOM.
        pictures: formats of heatmaps to write beside them.
        settings: further keys of the bundle's inference configs.
        terms: the codes of the objects, see :class:`monai_mil.dicom.Terms`.
    """

    series: tuple[Mapping[str, Any], ...] = ()
    operating_points: tuple[float, ...] | None = None
    objects: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> DeployConf:
        """The bundle's.

        Raises:
            SettingsError: there is none, or something in it is unknown; names it.
        """
        path = bundle.config("deploy")
        if not path.is_file():
            raise SettingsError(f"bundle '{bundle.name}' has no configs/deploy.json, so that no application can use it")
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            conf = cls._of(dict(content))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SettingsError(f"bundle '{bundle.name}': its configs/deploy.json cannot be used ({error})") from error
        known = FORMATS[bundle.reads]
        unknown = [name for name in (*conf.objects, *conf.pictures) if name not in known]
        if unknown:
            raise SettingsError(
                f"bundle '{bundle.name}': configs/deploy.json asks for '{unknown[0]}'; {bundle.reads} can be written "
                f"as {', '.join(known)}"
            )
        return conf

    @classmethod
    def _of(cls, content: dict[str, Any]) -> DeployConf:
        unknown = sorted(set(content) - set(_KEYS))
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}', it may have {', '.join(_KEYS)}")
        for name in ("series", "operating_points", "objects", "pictures"):
            if not isinstance(content.get(name) or [], list):
                raise ValueError(f"{name} must be a list: {_LISTED[name]}")
        points: list[float] | None = content.get("operating_points")
        if any(isinstance(point, bool) or not isinstance(point, int | float) for point in points or ()):
            raise ValueError(f"operating_points must be a list: {_LISTED['operating_points']}")
        return cls(
            series=tuple(dict(rule) for rule in content.get("series", ())),
            operating_points=None if points is None else tuple(map(float, points)),
            objects=tuple(content.get("objects", ())),
            pictures=tuple(content.get("pictures", ())),
            settings=dict(content.get("settings", {})),
            terms=dict(content.get("terms", {})),
        )


@dataclass(frozen=True)
class Job:
    """What an application is to do.

    Attributes:
        modality: of the application.
        source: the folder, or file, of what came in.
        output: the folder of the results.
        model: a bundle's folder, or one that holds nothing but bundles of which there is one.
    """

    modality: Modality
    source: Path
    output: Path
    model: Path

    def bundle(self) -> Bundle:
        """The bundle.

        Raises:
            SettingsError: there is none, there are several, or it is of the other application.
        """
        bundle = _bundle_at(self.model)
        if bundle.reads != READS[self.modality]:
            other = next(name for name, reads in READS.items() if reads == bundle.reads)
            raise SettingsError(
                f"bundle '{bundle.name}' reads {bundle.reads}: start the application '{other}' with it, or give "
                f"'{self.modality}' a bundle that reads {READS[self.modality]}"
            )
        return bundle


def _bundle_at(place: Path) -> Bundle:
    inner = sorted(path.parents[1] for path in place.glob("*/configs/metadata.json")) if place.is_dir() else []
    if (place / "configs" / "metadata.json").is_file() or not inner:
        return find_bundle(place)
    if len(inner) > 1:
        raise SettingsError(
            f"{len(inner)} bundles in the folder of models ({', '.join(path.name for path in inner)}): name one with -m"
        )
    return find_bundle(inner[0])
