"""An application folder and the studies it is about: models, images, labels, and what is asked for next."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import AnnotationError, MonaiMILError, SettingsError
from monai_mil.label.choosing import distances, farthest_first, highest, next_tile, rank_product
from monai_mil.label.images import StudyImage, StudyImages
from monai_mil.label.labels import LabelRules, WeakLabel, read_label_table
from monai_mil.label.masks import check_size, has_finding
from monai_mil.label.model import ServedModel
from monai_mil.label.scoring import mutual_information, score_image
from monai_mil.label.store import LabelStore, Record, Scores, Submission
from monai_mil.label.submissions import patch_of, read_submission
from monai_mil.runs import Bundle, copy_bundle, find_bundle
from monai_mil.slides import AnnotationFrame, Bounds, open_slide, slide_bounds

logger = logging.getLogger(__name__)

CONF = "label.json"
STRATEGIES = {
    "uncertainty": "the image whose answer is the most doubtful",
    "heat": "the slide on which the model is least sure where to look",
    "bald": "the image about which the network disagrees with itself under dropout",
    "committee": "the image about which the models disagree",
    "anchor": "the slide on which ASMIL's attention still differs most from its anchor",
    "diversity": "the image least like all that are labelled; needs no label to begin with",
    "hybrid": "doubtful and unlike what is labelled",
    "random": "any image",
    "first": "the first image by name",
}
"""The strategies and what each asks for."""
_OF_SCORES = ("uncertainty", "heat", "bald", "anchor")


@dataclass(frozen=True)
class Conf:
    """``label.json`` of an application folder.

    Attributes:
        bundles: names of the folders in ``model/``, the one that strategies ask first.
        settings: further keys of the bundles' configs, by bundle.
        classes: further names of annotation classes and the class that each means.
        labels: a CSV of labels that are known already, relative to the folder; None for none.
        served_minutes: for how long an image that was given to one annotator is given to no other.
        annotators: by how many an image is labelled.
    """

    bundles: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, str]
    labels: str | None = None
    served_minutes: float = 30.0
    annotators: int = 1

    @classmethod
    def read(cls, folder: Path) -> Conf:
        """The conf file of a folder.

        Raises:
            SettingsError: it is not there or no such file.
        """
        path = folder / CONF
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            classes = {str(name).lower(): str(known) for name, known in said.get("classes", {}).items()}
            return cls(
                tuple(said["bundles"]),
                said.get("settings", {}),
                classes,
                said.get("labels"),
                float(said.get("served_minutes", 30)),
                int(said.get("annotators", 1)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"'{path}' cannot be read ({error!r}); make it with 'monai-mil label init'") from error


class Project:
    """What a server works on; processes beside it make their own of the same folders.

    Args:
        folder: as :func:`init_project` makes it.
        studies: the folder of slides or scans; labels, scores and features are kept in its ``.mil/``.
    """

    def __init__(self, folder: Path, studies: Path) -> None:
        self.folder = folder
        self.conf = Conf.read(folder)
        self.store = LabelStore(studies / ".mil")
        self.models = {
            name: ServedModel(
                find_bundle(folder / "model" / name),
                self.store.folder / "features",
                settings=self.conf.settings.get(name),
            )
            for name in self.conf.bundles
        }
        if not self.models:
            raise SettingsError(f"'{folder / CONF}' names no bundle; make it with 'monai-mil label init'")
        self.images: StudyImages = StudyImages(studies, [model.bundle.reads for model in self.models.values()])

    def model(self, name: str | None = None) -> ServedModel:
        """A model by its name; the first where none is asked for.

        Raises:
            SettingsError: there is no such model.
        """
        if not name:
            return next(iter(self.models.values()))
        if not isinstance(name, str) or name not in self.models:
            raise SettingsError(f"no model '{name}': there are {', '.join(self.models)}")
        return self.models[name]

    def rules(self, *models: ServedModel) -> LabelRules:
        """What annotators may call the classes of one model, or of several together."""
        classes = tuple(dict.fromkeys(name for each in models for name in each.classes))
        return LabelRules(classes, self.conf.classes)

    def answered(self, name: str, model: ServedModel) -> StudyImage:
        """An image that a model can answer.

        Raises:
            MonaiMILError: there is none of this name, or it is of another kind.
        """
        image = self.images.find(name)
        if image.reads != model.bundle.reads:
            raise SettingsError(
                f"model '{model.name}' reads {model.bundle.reads}, and '{name}' is none: choose another model"
            )
        return image

    def place(self, image: StudyImage) -> tuple[str, Path, str | None]:
        """What the models know an image by: its name, where it lies, and which series of a folder it is."""
        return image.name, self.images.here(image), image.series_uid

    def submit(self, name: str, file: Path, annotator: str, params: Mapping[str, Any]) -> Submission:
        """Keep what an annotator sent of an image, or of a patch of one.

        Args:
            name: the image, or ``<image>-patch-<x>_<y>_<width>_<height>``.
            file: annotations (``.xml``, ``.json``, ``.geojson``) or a scan's mask.
            annotator: who; empty where that is not known.
            params: of the client; ``bag_label`` says the label outright, ``frame`` what coordinates count from.

        Raises:
            MonaiMILError: there is no such image, or the file says nothing; then nothing is kept.
        """
        patch = patch_of(name) if not self._knows(name) else None
        image = self.images.find(patch.parent if patch else name)
        rules = self.rules(*(each for each in self.models.values() if each.bundle.reads == image.reads))
        outright = rules.from_parameters(params)
        boxes: tuple[tuple[float, float, float, float], ...] = ()
        if image.reads == "scans":
            label = outright or rules.from_mask(has_finding(file))
            check_size(file, self.images.volume(image))
        else:
            size, bounds = _extent(image.path)
            frame: AnnotationFrame = "level0" if params.get("frame") == "level0" else "qupath"
            try:
                shapes = read_submission(
                    file, size=size, bounds=bounds, frame=frame, offset=patch.corner if patch else (0, 0)
                )
            except AnnotationError as error:
                raise AnnotationError(str(error).replace(str(file), file.name)) from error
            names = [shape.name for shape in shapes]
            if outright is None:
                rules.check(names)
            label = outright or rules.from_annotations(names, whole=patch is None)
            boxes = tuple(shape.box for shape in shapes if rules.class_of(shape.name) is not None)
        return self.store.submit(
            image.name, annotator, label=label.name, source=label.source, file=file, boxes=boxes, params=params
        )

    def labels(self, model: ServedModel) -> dict[str, WeakLabel]:
        """The label of every labelled image that a model can learn from: a submission's before the table's."""
        table = self._table(self.rules(model))
        found = {}
        for image in self.images.all():
            if image.reads != model.bundle.reads:
                continue
            submission = self.store.read(image.name).label
            if submission is not None and submission.label in model.classes:
                found[image.name] = WeakLabel(submission.label, submission.source)
            elif image.name in table:
                found[image.name] = table[image.name]
        return found

    def labelled(self) -> list[str]:
        """Names of the images that have a label, of anybody or of the project's table."""
        table = self._table(self.rules(*self.models.values()))
        return [
            image.name
            for image in self.images.all()
            if image.name in table or self.store.read(image.name).label is not None
        ]

    def unlabelled(self, model: ServedModel, annotator: str | None = None) -> list[StudyImage]:
        """Images that still need a label, without those that another annotator was given a short while ago.

        Args:
            model: what must be able to read them.
            annotator: who asks; None leaves out nothing that was given to anybody.
        """
        table = self._table(self.rules(model))
        found = []
        for image in self.images.all():
            if image.reads != model.bundle.reads or image.name in table or patch_of(image.name) is not None:
                continue
            record = self.store.read(image.name)
            if self._is_done(record, annotator) or (annotator is not None and self._is_busy(record, annotator)):
                continue
            found.append(image)
        return found

    def scores(self, model: ServedModel, image: StudyImage) -> Scores:
        """A model's scores of an image, made anew where those that are kept are of other weights.

        Raises:
            MonaiMILError: the image cannot be answered.
        """
        kept = self.store.read(image.name).scores.get(model.name)
        if kept is not None and _is_fresh(kept, model):
            return kept
        made = score_image(model, *self.place(image))
        self.store.score(image.name, model.name, made)
        return made

    def score_all(self, model: ServedModel) -> dict[str, Scores]:
        """Scores of all unlabelled images, features included; what cannot be answered is left out and logged."""
        return {image.name: scores for image, scores in self._scored(model, self.unlabelled(model))}

    def stale(self) -> list[str]:
        """Models that have unlabelled images without scores of their present weights."""
        return [
            name
            for name, model in self.models.items()
            if any(
                (kept := self.store.read(image.name).scores.get(name)) is None or not _is_fresh(kept, model)
                for image in self.unlabelled(model)
            )
        ]

    def strategies(self) -> dict[str, str]:
        """The strategies that these models allow, by name, with what they ask for."""
        models = list(self.models.values())
        absent = set()
        if not any(model.has_dropout for model in models):
            absent.add("bald")
        if not any(model.has_anchor for model in models):
            absent.add("anchor")
        if len(self._committee(self.model())) < 2:
            absent.add("committee")
        if all(model.bundle.reads == "scans" for model in models):
            absent.add("heat")
        return {name: meaning for name, meaning in STRATEGIES.items() if name not in absent}

    def next_images(self, strategy: str, annotator: str, *, model: str | None = None, count: int = 1) -> list[str]:
        """The images that a strategy would have labelled next, best first; none where nothing is left.

        What has features but no scores of the present weights is scored at once. An image without features is scored
        only where no other is left: its slide would have to be read first.

        Raises:
            SettingsError: these models do not allow the strategy; says why.
        """
        self.check_strategy(strategy)
        chosen_model = self._suited(strategy, model)
        left = self.unlabelled(chosen_model, annotator)
        if not left:
            return []
        if strategy in ("first", "random"):
            drawn = left if strategy == "first" else random.sample(left, len(left))
            names = [image.name for image in islice(filter(_can_be_opened, drawn), count)]
        else:
            ready = [image for image in left if chosen_model.has_features(image.name)]
            names = self._best(strategy, chosen_model, ready, count)
            for image in left:
                if names:
                    break
                if image not in ready:
                    names = self._best(strategy, chosen_model, [image], count)
        for name in names:
            self.store.serve(name, annotator)
        return names

    def next_part(
        self, name: str, patch_size: tuple[int, int], *, model: str | None = None, mode: str = "hottest"
    ) -> tuple[int, int, int, int] | None:
        """The part of a slide that is looked at next, x, y, width, height in level-0 pixels; None where all is seen.

        Raises:
            MonaiMILError: there is no such slide, or it cannot be answered.
        """
        chosen = self._suited("heat", model)
        image = self.answered(name, chosen)
        heatmap = chosen.answer(*self.place(image)).heatmap
        if heatmap is None:
            raise SettingsError(f"'{name}' is a scan, which has no next tile: open the next scan")
        covered = [box for submission in self.store.read(image.name).submissions for box in submission.boxes]
        return next_tile(heatmap, patch_size, covered, "uncertain" if mode == "uncertain" else "hottest")

    def check_strategy(self, strategy: str) -> None:
        """Raise a SettingsError that says why, unless the models allow a strategy."""
        allowed = self.strategies()
        if not isinstance(strategy, str):
            raise SettingsError(f"no strategy {strategy!r}; there are {', '.join(allowed)}")
        if strategy in allowed:
            return
        why = {
            "anchor": "no model has the anchor of its training beside its weights; train pathology_asmil here first",
            "bald": "no network has dropout",
            "committee": "there are not two models of the same classes",
            "heat": "the models read scans",
        }
        reason = f": {why[strategy]}" if strategy in why else ""
        raise SettingsError(f"no strategy '{strategy}'{reason}; there are {', '.join(allowed)}")

    def extent(self, name: str) -> tuple[tuple[int, int], Bounds]:
        """Width and height of a slide, and its scanned part, in level-0 pixels."""
        return _extent(self.images.find(name).path)

    def _table(self, rules: LabelRules) -> dict[str, WeakLabel]:
        return read_label_table(self.folder / self.conf.labels, rules) if self.conf.labels else {}

    def _best(self, strategy: str, model: ServedModel, ready: Sequence[StudyImage], count: int) -> list[str]:
        if strategy == "committee":
            return highest(self._disagreement(model, ready), count)
        doubt = {}
        if strategy in _OF_SCORES or strategy == "hybrid":
            wanted = "uncertainty" if strategy == "hybrid" else strategy
            doubt = {image.name: scores.values.get(wanted, 0.0) for image, scores in self._scored(model, ready)}
            if strategy != "hybrid":
                return highest(doubt, count)
        embeddings = self._embeddings(model, ready)
        labelled = [self.images.find(name) for name in self.labels(model)]
        known = list(self._embeddings(model, [image for image in labelled if model.has_features(image.name)]).values())
        if strategy == "diversity":
            return farthest_first(embeddings, known, count)
        return highest(rank_product(doubt, distances(embeddings, known)), count)

    def _scored(self, model: ServedModel, images: Sequence[StudyImage]) -> list[tuple[StudyImage, Scores]]:
        found = []
        for image in images:
            try:
                found.append((image, self.scores(model, image)))
            except MonaiMILError as error:
                logger.warning("not scored: %s", error)
        return found

    def _embeddings(self, model: ServedModel, images: Sequence[StudyImage]) -> dict[str, np.ndarray]:
        found = {}
        for image in images:
            try:
                found[image.name] = model.embedding(*self.place(image))
            except MonaiMILError as error:
                logger.warning("no features: %s", error)
        return found

    def _disagreement(self, model: ServedModel, images: Sequence[StudyImage]) -> dict[str, float]:
        committee = self._committee(model)
        votes: dict[str, list[list[float]]] = {}
        for member in committee:
            for image, scores in self._scored(member, images):
                votes.setdefault(image.name, []).append([scores.probabilities[name] for name in model.classes])
        return {name: mutual_information(rows) for name, rows in votes.items() if len(rows) == len(committee)}

    def _committee(self, model: ServedModel) -> list[ServedModel]:
        """The models that answer the same question as one of them."""
        return [
            each
            for each in self.models.values()
            if each.bundle.reads == model.bundle.reads and set(each.classes) == set(model.classes)
        ]

    def _suited(self, strategy: str, model: str | None) -> ServedModel:
        """The model that is asked for, else the first that the strategy can be asked of."""
        if model:
            return self.model(model)
        for each in self.models.values():
            if (
                (strategy == "bald" and not each.has_dropout)
                or (strategy == "anchor" and not each.has_anchor)
                or (strategy == "heat" and each.bundle.reads == "scans")
            ):
                continue
            return each
        return self.model()

    def _is_done(self, record: Record, annotator: str | None) -> bool:
        """Whether an image has labels enough, or this annotator's; without an annotator whether it has any."""
        by = {each.annotator for each in record.submissions if each.label is not None}
        return bool(by) if annotator is None else annotator in by or len(by) >= self.conf.annotators

    def _is_busy(self, record: Record, annotator: str) -> bool:
        since = datetime.now(UTC) - timedelta(minutes=self.conf.served_minutes)
        others = [when for who, when in record.served.items() if who != annotator]
        return any(datetime.fromisoformat(when) > since for when in others)

    def _knows(self, name: str) -> bool:
        try:
            self.images.find(name)
        except MonaiMILError:
            return False
        return True


def init_project(folder: Path, bundles: Sequence[str]) -> Path:
    """Make an application folder: ``main.py``, ``label.json`` and a copy of every bundle, which training changes.

    Args:
        folder: is made.
        bundles: names of shipped bundles, or folders.

    Returns:
        ``folder``.

    Raises:
        SettingsError: there is no such bundle, or it comes without weights.
        OutputError: a bundle is there already.
    """
    found = [find_bundle(name) for name in bundles]
    _check_bundles(found)
    for bundle in found:
        copy_bundle(bundle, folder / "model")
    (folder / "main.py").write_text("from monai_mil.label.app import MILApp  # noqa: F401\n", encoding="utf-8")
    conf: dict[str, Any] = {
        "bundles": [bundle.name for bundle in found],
        "settings": {bundle.name: {} for bundle in found},
        "classes": {},
        "labels": None,
        "served_minutes": 30,
        "annotators": 1,
    }
    (folder / CONF).write_text(json.dumps(conf, indent=4) + "\n", encoding="utf-8")
    return folder


def _check_bundles(bundles: Sequence[Bundle]) -> None:
    if not bundles:
        raise SettingsError("name at least one bundle, with --bundles pathology_insight for example")
    for bundle in bundles:
        if not bundle.weights.is_file():
            raise SettingsError(f"bundle '{bundle.name}' comes without weights; train it first")


def _is_fresh(scores: Scores, model: ServedModel) -> bool:
    """Whether kept scores are of the present weights and hold all that the model can say; an anchor may have come."""
    possible = {
        "heat": model.bundle.reads == "slides",
        "bald": model.has_dropout,
        "anchor": model.has_anchor,
    }
    said = {name for name, is_possible in possible.items() if is_possible} | {"uncertainty"}
    return scores.fingerprint == model.fingerprint and said <= set(scores.values)


def _can_be_opened(image: StudyImage) -> bool:
    """Whether a slide is one; nobody can label it else. A scan is taken to be one: to see that, all of it is read."""
    try:
        return image.reads == "scans" or bool(_extent(image.path))
    except MonaiMILError as error:
        logger.warning("not given to anybody: %s", error)
        return False


def _extent(path: Path) -> tuple[tuple[int, int], Bounds]:
    with open_slide(path, mpp=1.0) as slide:  # its pixel size plays no part
        width, height = slide.size
        return (int(width), int(height)), slide_bounds(slide)
