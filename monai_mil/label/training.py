"""Training on what annotators submitted, and putting the result in the place of the model that is served."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.cohorts import Cohort, CohortSlide
from monai_mil.errors import CohortError, MonaiMILError
from monai_mil.files import replacing
from monai_mil.label.model import ANCHOR, ServedModel
from monai_mil.label.project import Project
from monai_mil.model_card import read_model
from monai_mil.runs import train_run
from monai_mil.training import publish_model

_LEAST = 1e-6


@dataclass(frozen=True)
class TrainingOutcome:
    """What became of a training.

    Attributes:
        published: whether its model is served now.
        fingerprint: digest of its weights.
        loss: mean log loss of it on the cases it was compared on.
        loss_before: that of the model that was served until then.
        images: how many images it learned from, and was compared on.
        left_out: images with a label that could not be read, and why.
    """

    published: bool
    fingerprint: str
    loss: float
    loss_before: float
    images: tuple[int, int]
    left_out: Mapping[str, str]


def train_on_labels(
    project: Project,
    model: ServedModel,
    out: Path,
    *,
    max_epochs: int | None = None,
    val_split: float = 0.2,
    pretrained: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> TrainingOutcome:
    """Train a model on all labels there are, and serve the result if it is not worse.

    A share of the labelled images, of every class, is kept apart to choose the epoch and to compare; where a class has
    too few for that the training's own images are.

    Args:
        project: whose labels.
        model: what is trained; its weights are replaced as a whole or not at all.
        out: the run's folder, new for every run.
        max_epochs: how many epochs; None takes the bundle's number.
        val_split: share of the images that is kept apart.
        pretrained: begin with the served weights; else from scratch.
        settings: further keys of the bundle's ``train.json``.

    Raises:
        CohortError: there are labels of fewer than two classes.
        MonaiMILError: the training's own error.
    """
    labels, left_out = _embedded(project, model)
    if len(set(labels.values())) < 2:
        raise CohortError(
            f"training needs labelled images of at least two classes of {', '.join(model.classes)}; there are "
            f"{len(labels)} of {len(set(labels.values()))}"
        )
    kept_apart = split_off(labels, val_split)
    table = _table(project, model, labels, kept_apart, out)
    given: dict[str, Any] = {"bag_dir": str(model.bags), "class_names": list(model.classes)}
    given |= {} if kept_apart else {"validate::dataset::data": "@train::dataset::data"}
    given |= {"train::trainer::max_epochs": int(max_epochs)} if max_epochs else {}
    given |= {"pretrained": str(model.weights)} if pretrained else {}
    train_run(model.bundle, table, out, settings={**given, **(settings or {})}).start()
    candidate = out / "models" / "model.pt"
    compared = sorted(kept_apart) or sorted(labels)
    trained = ServedModel(model.bundle, model.folder, settings=model.settings, weights=candidate)
    loss, before = (_log_loss(project, each, labels, compared) for each in (trained, model))
    published = loss <= before
    if published:
        publish(candidate, model.weights)
    learned = len(labels) - len(kept_apart)
    return TrainingOutcome(published, trained.fingerprint, loss, before, (learned, len(compared)), left_out)


def split_off(labels: Mapping[str, str], share: float) -> set[str]:
    """The images that are kept apart from training: of every class this share, always the same ones of a name.

    Empty where a class would keep none of its own on either side.

    Examples:
        >>> from monai_mil.label import split_off
        >>> labels = {f"S-{number}": "tumor" if number % 2 else "normal" for number in range(10)}
        >>> len(split_off(labels, 0.2)), split_off(labels, 0.0), split_off({"a": "normal", "b": "tumor"}, 0.2)
        (2, set(), set())
    """
    if share <= 0:
        return set()
    chosen: set[str] = set()
    for label in set(labels.values()):
        names = sorted(
            (name for name, own in labels.items() if own == label),
            key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
        )
        if len(names) < 2:
            return set()
        chosen |= set(names[: min(max(1, round(share * len(names))), len(names) - 1)])
    return chosen


def publish(candidate: Path, target: Path) -> None:
    """Put a training's weights in the place of those that are served, with their card and their anchor.

    Raises:
        SettingsError: the candidate is not whole.
        OutputError: it cannot be written.
    """
    read_model(candidate)
    anchor = candidate.with_name(ANCHOR)
    if anchor.is_file():  # first: it counts for nothing until its weights are there
        with replacing(target.with_name(ANCHOR)) as partial:
            shutil.copyfile(anchor, partial)
    publish_model(candidate, target)


def _embedded(project: Project, model: ServedModel) -> tuple[dict[str, str], dict[str, str]]:
    """Labels of the images whose features are there, after making those that are not; and what cannot be read."""
    labels, left_out = {}, {}
    for name, label in project.labels(model).items():
        image = project.images.find(name)
        try:
            model.embed(*project.place(image))
        except MonaiMILError as error:
            left_out[name] = str(error)
            continue
        assert label.name is not None
        labels[name] = label.name
    return labels, left_out


def _table(project: Project, model: ServedModel, labels: Mapping[str, str], kept_apart: set[str], out: Path) -> Path:
    cases = tuple(
        CohortSlide(
            name,
            name,
            project.images.find(name).path,
            "val" if name in kept_apart else "train",
            model.classes.index(label),
        )
        for name, label in labels.items()
    )
    id_column = "scan_id" if model.bundle.reads == "scans" else "slide_id"
    cohort = Cohort(out / "cohort.csv", cases, ("label",), model.classes, id_column)
    out.mkdir(parents=True, exist_ok=True)
    return cohort.write(out / "cohort.csv")


def _log_loss(project: Project, model: ServedModel, labels: Mapping[str, str], names: list[str]) -> float:
    losses = []
    for name in names:
        image = project.images.find(name)
        prob = model.answer(*project.place(image)).prediction.prob
        losses.append(-np.log(max(float(prob[model.classes.index(labels[name])]), _LEAST)))
    return float(np.mean(losses))
