"""What MONAI Label runs: inference, training, strategies and scoring of a project's models. Needs MONAI Label."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.transform.writer import Writer

from monai_mil.errors import SettingsError
from monai_mil.label.annotator import annotator_of
from monai_mil.label.datastore import told
from monai_mil.label.heat import HEAT_CLASSES
from monai_mil.label.images import StudyImage
from monai_mil.label.model import ServedModel
from monai_mil.label.project import Project
from monai_mil.label.scoring import entropy
from monai_mil.label.store import Scores
from monai_mil.label.training import train_on_labels
from monai_mil.slides import frame_origin

logger = logging.getLogger(__name__)

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd")
_TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")


def described(model: ServedModel) -> str:
    """What a client shows of a model: plain words, for clients put them into XML as they are."""
    said = str(model.bundle.metadata.get("description", model.name))
    return "".join(letter for letter in said if letter.isascii() and letter not in "\"'<>&")


class ModelTask(InferTask):
    """One model's inference.

    Clients list its heat classes as labels. On a scan it gives a label map; slides are answered by the application.

    Args:
        project: whose model.
        model: the model.
    """

    def __init__(self, project: Project, model: ServedModel) -> None:
        scans = model.bundle.reads == "scans"
        labels = {name: index for index, name in enumerate(HEAT_CLASSES, start=1)}
        super().__init__(InferType.SEGMENTATION, labels, 3 if scans else 2, described(model))
        self.project = project
        self.model = model

    def info(self) -> dict[str, Any]:
        """What clients are told: the classes to annotate with, beside MONAI Label's own."""
        slides = self.model.bundle.reads == "slides"
        with told():
            said = {"classes": list(self.model.classes), "fingerprint": self.model.fingerprint}
        return {**super().info(), "pathology": slides, "nuclick": False, **said}

    def is_valid(self) -> bool:
        """Whether it can be asked."""
        return self.model.weights.is_file()

    def get_path(self, validate: bool = True) -> str:
        """The weights."""
        return str(self.model.weights)

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Answer about one image; of a scan with a label map on its own grid.

        Raises:
            HTTPException: it cannot be answered; says why.
        """
        with told():
            _check_written(request)
            image = self._asked(request)
            answer = self.model.answer(*self.project.place(image))
            note_answer(self.project, self.model, image, annotator_of(request), answer)
            if self.model.bundle.reads == "slides":
                return None, answer.facts
            label_map, said = self.model.label_map(answer)
        names = {name: index for index, name in enumerate(HEAT_CLASSES, start=1)}
        usual = {"result_extension": ".nii.gz", "result_dtype": "uint8"}
        written = {**usual, **request, "pred": label_map[0], "result": {**said, "label_names": names}}
        return Writer(label="pred", json="result")(written)

    def _asked(self, request: dict[str, Any]) -> StudyImage:
        """The image of a request, which MONAI Label names by its path, or a file that a client sent."""
        said = str(request.get("image", ""))
        known = self.project.images.at(said)
        if known is not None:
            return self.project.answered(known.name, self.model)
        path = Path(said)
        if said and path.exists():
            return StudyImage(path.name.partition(".")[0], path, self.model.bundle.reads)
        return self.project.answered(said, self.model)


def _check_written(request: Mapping[str, Any]) -> None:
    """Raise a SettingsError unless a label map can be written as a request wants it."""
    extension, dtype = request.get("result_extension") or _EXTENSIONS[0], request.get("result_dtype") or "uint8"
    if extension not in _EXTENSIONS:
        raise SettingsError(f"result_extension {extension!r}: label maps are written as {', '.join(_EXTENSIONS)}")
    if dtype not in _TYPES:
        raise SettingsError(f"result_dtype {dtype!r}: label maps are written as {', '.join(_TYPES)}")


def note_answer(project: Project, model: ServedModel, image: StudyImage, annotator: str, answer: Any) -> None:
    """Keep what a model said of an image, and to whom."""
    if all(image.path != known.path for known in project.images.all()):
        return  # an image that a client sent and the studies do not hold
    project.store.show(image.name, annotator, model.name, answer.fingerprint)
    kept = project.store.read(image.name).scores.get(model.name)
    if kept is None or kept.fingerprint != answer.fingerprint:
        values = {"uncertainty": entropy(answer.prediction.prob)}
        facts = answer.facts
        scores = Scores(answer.fingerprint, values, str(facts["prediction"]), facts["probabilities"])
        project.store.score(image.name, model.name, scores)


class LabelStrategy(Strategy):
    """One of the project's strategies: the next image, or, where one is open, the next part of it.

    Args:
        project: whose images.
        name: of the strategy.
        description: what it asks for.
    """

    def __init__(self, project: Project, name: str, description: str) -> None:
        super().__init__(description)
        self.project = project
        self.strategy = name

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """``id`` and ``ids`` of what is next, or ``id`` and ``bbox``; empty where nothing is left.

        Raises:
            HTTPException: these models do not allow the strategy, or the image cannot be answered.
        """
        with told():
            model = request.get("model") or None
            if request.get("image"):
                return self._part(str(request["image"]), request, model)
            count = max(1, _whole(request.get("n", 1), "n"))
            names = self.project.next_images(self.strategy, annotator_of(request), model=model, count=count)
            if not names:
                return {}
            return {"id": names[0], "ids": names, "strategy_used": self.strategy}

    def _part(self, name: str, request: dict[str, Any], model: str | None) -> dict[str, Any]:
        sides = request.get("patch_size") or (1024, 1024)
        if not isinstance(sides, (list, tuple)) or len(sides) != 2:
            raise SettingsError(f"patch_size {sides!r} is no width and height")
        width, height = (_whole(side, "patch_size") for side in sides)
        box = self.project.next_part(name, (width, height), model=model, mode=str(request.get("mode", "hottest")))
        if box is None:
            return {}
        image = self.project.images.find(name)
        _, bounds = self.project.extent(name)
        is_cropped = list(bounds[2:]) == request.get("image_size")
        x, y = frame_origin("qupath", bounds) if is_cropped else (0, 0)
        return {"id": image.name, "bbox": [box[0] - x, box[1] - y, *box[2:]]}


def _whole(value: Any, name: str) -> int:
    """A positive whole number that a client sent.

    Raises:
        SettingsError: it is none.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise SettingsError(f"{name} {value!r} is no whole number above 0")
    return number


class ScoreImages(ScoringMethod):
    """Scores of all unlabelled images, of every model; their features are made where they are missing.

    Args:
        project: whose images.
    """

    def __init__(self, project: Project) -> None:
        super().__init__("scores of all unlabelled images, for the strategies")
        self.project = project

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """How many images of each model were scored."""
        return {"scored": {name: len(self.project.score_all(model)) for name, model in self.project.models.items()}}


class Agreement(ScoringMethod):
    """How well each model's answers agree with the labels that were submitted.

    Args:
        project: whose labels.
    """

    def __init__(self, project: Project) -> None:
        super().__init__("share of the labelled images that each model calls as the annotators do")
        self.project = project

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """``images`` and ``agree`` of every model; without labels ``agree`` is None."""
        found = {}
        for name, model in self.project.models.items():
            labels = self.project.labels(model)
            with told():
                answers = {each: self.project.scores(model, self.project.images.find(each)) for each in labels}
            right = [answers[each].prediction == label.name for each, label in labels.items()]
            found[name] = {"images": len(right), "agree": sum(right) / len(right) if right else None}
        return found


class TrainOnLabels(TrainTask):
    """Training of one model on all that was submitted.

    Args:
        project: whose labels.
        model: what is trained.
    """

    def __init__(self, project: Project, model: ServedModel) -> None:
        super().__init__(f"train {model.name} on the submitted labels")
        self.project = project
        self.model = model

    def config(self) -> dict[str, Any]:
        """What a client may set; none of it is null, which QuPath cannot show."""
        return {"max_epochs": 50, "val_split": 0.2, "pretrained": True, "learning_rate": 0.0}

    def stats(self) -> dict[str, Any]:
        """What the last training came to."""
        return {}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Train and, if the model is not worse, serve it.

        Raises:
            SettingsError: a setting is none.
            MonaiMILError: there is nothing to learn from, or training fails.
        """
        silence_libraries()
        config = {**self.config(), **{name: value for name, value in request.items() if value not in (None, "")}}
        try:
            epochs, share, rate = int(config["max_epochs"]), float(config["val_split"]), float(config["learning_rate"])
        except (TypeError, ValueError) as error:
            raise SettingsError(f"training: {error}; max_epochs, val_split and learning_rate are numbers") from error
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        outcome = train_on_labels(
            self.project,
            self.model,
            self.project.folder / "runs" / f"{self.model.name}-{started}",
            max_epochs=epochs,
            val_split=share,
            pretrained=str(config["pretrained"]).lower() not in ("false", "0"),
            settings={"optimizer::lr": rate} if rate > 0 else None,
        )
        return {
            "published": outcome.published,
            "fingerprint": outcome.fingerprint,
            "loss": outcome.loss,
            "loss_before": outcome.loss_before,
            "images": list(outcome.images),
            "left_out": len(outcome.left_out),
        }


def silence_libraries() -> None:
    """Keep libraries from filling the twenty lines of a job's details."""
    for name in ("nvidia", "nvimgcodec", "monai.networks"):
        logging.getLogger(name).setLevel(logging.ERROR)
