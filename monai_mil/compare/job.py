"""One training of a comparison and its evaluation: what is run, where, and whether it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_mil import __version__
from monai_mil.compare.competitor import Competitor
from monai_mil.compare.protocol import same_for_all
from monai_mil.files import parse_json
from monai_mil.runs import BundleRun, evaluate_run, train_run


@dataclass(frozen=True)
class Job:
    """A method on one fold from one seed.

    Attributes:
        competitor: the method.
        fold: the fold that is tested on.
        seed: of the training.
        out: folder of the comparison, with the table ``cohort.csv``.
        data: folder of the cohort: ``bags/`` and, where there is any truth, ``masks/``.
        epochs: of the training.
        shared: further settings that all methods share, such as the classes.
        survival: bags are labelled with follow-up.
        truth: maps are compared with ``masks/``.
        test_curve: the test cases are answered after every epoch too.
        sweep: a key and values with each of which the finished model is evaluated again, or None.
        cases: what tells the cohort and its folds from any others.
        features: what tells its bags from those of another embedding, and its masks from others.
    """

    competitor: Competitor
    fold: int
    seed: int
    out: Path
    data: Path
    epochs: int
    shared: Mapping[str, Any] = field(default_factory=dict)
    survival: bool = False
    truth: bool = False
    test_curve: bool = False
    sweep: tuple[str, tuple[Any, ...]] | None = None
    cases: str = ""
    features: str = ""

    @property
    def folder(self) -> Path:
        """Where all of it is written."""
        return self.out / "runs" / self.competitor.stem / f"fold_{self.fold}_seed_{self.seed}"

    @property
    def result(self) -> Path:
        """The file that is there if, and only if, all of it is done."""
        return self.folder / "result.json"

    @property
    def begun(self) -> Path:
        """The file that says with what it was begun, so that nobody goes on with other settings."""
        return self.folder / "begun.json"

    @property
    def failure(self) -> Path:
        """The file that says why it is not."""
        return self.folder / "failed.json"

    @property
    def words(self) -> str:
        """What it is, for a person."""
        return f"{self.competitor.name}, fold {self.fold}, seed {self.seed}"

    def point_folder(self, point: int) -> Path:
        """Where a point of the grid is trained."""
        return self.folder / f"point_{point}" if self.competitor.grid else self.folder

    def training(self, point: int = 0) -> BundleRun:
        """The training of a point of the grid, as ``bundle run`` repeats it."""
        own = self.competitor
        overlays = [*own.overlays, *(["survival"] if self.survival and "survival" not in own.overlays else [])]
        settings = {**same_for_all(own, self.epochs, self.survival), **self._settings(point)}
        return train_run(own.bundle, self._table, self.point_folder(point), overlays=overlays, settings=settings)

    def evaluation(self, point: int, name: str = "eval", further: Mapping[str, Any] | None = None) -> BundleRun:
        """The evaluation of a trained point on the fold's test cases, into a folder of its name."""
        model, own = self.point_folder(point), self.competitor
        overlays = [overlay for overlay in own.overlays if overlay != "anchor"]  # of training alone
        settings = {**self._settings(point), **(further or {})}
        run = evaluate_run(own.bundle, self._table, model / name, model=model, overlays=overlays, settings=settings)
        if not self.truth:
            return run
        settings = {**run.settings, "run": ["$@validate::evaluator.run()"]}  # a slide without truth ends no comparison
        return BundleRun(run.bundle, (*run.configs, "localise"), settings)

    @property
    def digest(self) -> str:
        """What decides its outcome: settings, configs, cases, features and version, and no places."""
        own = self.competitor
        told = [own.name, self.fold, self.seed, self.epochs, dict(self.shared), dict(own.settings), dict(own.grid)]
        told += [self.survival, self.truth, self.test_curve, self.sweep, self.cases, self.features, __version__]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        names = [*self.training().configs, "evaluate", "evaluate_survival", "localise"]
        for path in map(own.bundle.config, [*names, f"methods/{own.settings.get('method')}"]):
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:32]

    def finished(self) -> dict[str, Any] | None:
        """What ``result.json`` says, None while it is not there."""
        return _read(self.result)

    def is_of_other_settings(self) -> bool:
        """Whether what its folder holds, finished or not, was begun with other settings, cases or features."""
        said = self.finished() or _read(self.begun)
        return said is not None and said.get("digest") != self.digest

    def failed(self) -> str | None:
        """Why it has no result, None where nothing is known."""
        said = _read(self.failure)
        return None if said is None else str(said["reason"])

    @property
    def _table(self) -> Path:
        return self.out / "cohort.csv"

    def _settings(self, point: int) -> dict[str, Any]:
        given = {"dataset_dir": str(self.data), "fold": self.fold, "seed": self.seed, **self.shared}
        return {**given, **self.competitor.settings, **self.competitor.points[point]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
