"""Training, evaluation and calibration on a labelled cohort: which configs and settings of a bundle do them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_mil.cohorts import read_cohort
from monai_mil.errors import CohortError, SettingsError
from monai_mil.model_card import read_model
from monai_mil.names import says_nothing_there
from monai_mil.runs.bundles import Bundle
from monai_mil.runs.inputs import cohort_settings
from monai_mil.runs.run import BundleRun


def train_run(
    bundle: Bundle,
    cohort: Path,
    out: Path,
    *,
    overlays: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> BundleRun:
    """The run that trains a bundle's network; the classes are those of the cohort, encoder and width those of its bags.

    Args:
        bundle: what is trained; nothing is written into its folder.
        cohort: the table, or the folder with ``cohort.csv`` and ``bags/``.
        out: the run's folder: ``models/`` and what the training writes beside.
        overlays: further configs of the bundle, such as ``survival``, ``anchor`` or ``paper``.
        resume: go on with the run that is in ``out``.
        overwrite: replace the run that is in ``out``.
        settings: further keys of the bundle's configs; they win over all others.

    Raises:
        CohortError: there is no such table.
        SettingsError: an unknown overlay.
    """
    own: dict[str, Any] = {**cohort_settings(cohort), **_places(out)}
    given = {**own, **(settings or {})}
    if "class_names" not in given and "survival" not in overlays:
        own["class_names"] = class_names(Path(given["cohort_file"]), given.get("label_columns", ["label"]))
    own |= {name: True for name, wanted in (("resume", resume), ("overwrite", overwrite)) if wanted}
    return BundleRun(bundle, ("train", *overlays), {**own, **given})


def class_names(table: Path, label_columns: Sequence[str]) -> list[str]:
    """The classes of a cohort in the order of a network's outputs: sorted, but what says "nothing there" first.

    The last of two classes is the one that a network with one output gives the probability of.

    Args:
        table: the cohort.
        label_columns: the column of the class, or those of a multi-label cohort, which are the classes.

    Raises:
        CohortError: the table cannot be read, or has no such column.

    Examples:
        >>> from monai_mil.runs.train import class_names
        >>> _ = (folder / "cohort.csv").write_text("slide_id,label\\nS-1,carcinoma\\nS-2,normal\\n")
        >>> class_names(folder / "cohort.csv", ["label"])
        ['normal', 'carcinoma']
    """
    cohort = read_cohort(table, labels=label_columns, unlabelled=True)
    if not cohort.classes:
        raise CohortError(f"cohort '{table}' has no labels in column {', '.join(label_columns)}; name it with --label")
    if len(label_columns) > 1:
        return list(cohort.classes)
    return sorted(cohort.classes, key=lambda name: not says_nothing_there(name))


def evaluate_run(
    bundle: Bundle,
    cohort: Path,
    out: Path,
    *,
    model: Path | None = None,
    overlays: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> BundleRun:
    """The run that evaluates a trained network on a split of a cohort.

    Args:
        bundle: what was trained.
        cohort: the table, or the folder with ``cohort.csv`` and ``bags/``.
        out: where the results go.
        model: the training's folder, or its ``model.pt``; default ``out``.
        overlays: the training's further configs; what belongs to its model comes by itself.
        settings: further keys of the bundle's configs; they win over all others.

    Raises:
        CohortError: there is no such table.
        SettingsError: there is no model.
    """
    return _after_training(bundle, cohort, out, model, overlays, "evaluate", settings)


def calibrate_run(
    bundle: Bundle, cohort: Path, out: Path, *, model: Path | None = None, settings: Mapping[str, Any] | None = None
) -> BundleRun:
    """The run that chooses a trained network's operating points on the validation split and writes its card.

    See :func:`evaluate_run` for the arguments.
    """
    return _after_training(bundle, cohort, out, model, (), "calibrate", settings)


def _after_training(
    bundle: Bundle,
    cohort: Path,
    out: Path,
    model: Path | None,
    overlays: Sequence[str],
    config: str,
    settings: Mapping[str, Any] | None,
) -> BundleRun:
    folder = model_folder(model or out)
    configs = ["train", *overlays]
    own = {**cohort_settings(cohort), **_places(out), "ckpt_dir": str(folder)}
    if read_model(folder / "model.pt").get("time_edges") and "survival" not in configs:
        configs.append("survival")
    configs.append(config)
    if "survival" in configs and bundle.has(f"{config}_survival"):
        configs.append(f"{config}_survival")
    return BundleRun(bundle, tuple(configs), {**own, **(settings or {})})


def model_folder(model: Path) -> Path:
    """The folder of the weights that a user means: their file, their folder, or the run's folder above it.

    Raises:
        SettingsError: there are none.
    """
    for folder in (model / "models", model, model.parent):
        if (folder / "model.pt").is_file() and (folder != model.parent or model.is_file()):
            return folder.absolute()
    raise SettingsError(f"no model.pt in '{model}'; name a training's folder with --model, or train first")


def _places(out: Path) -> dict[str, Any]:
    out = out.absolute()
    return {"ckpt_dir": str(out / "models"), "output_dir": str(out)}
