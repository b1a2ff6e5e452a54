"""The application that MONAI Label starts; an application folder's ``main.py`` imports it. Needs MONAI Label."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.async_tasks.utils import tasks

from monai_mil.errors import SettingsError
from monai_mil.label.annotator import annotator_of
from monai_mil.label.datastore import ProjectDatastore, told
from monai_mil.label.dicomweb import SeriesDatastore
from monai_mil.label.heat import heat_regions
from monai_mil.label.images import StudyImage
from monai_mil.label.model import Answer, ServedModel
from monai_mil.label.patches import patch_slide
from monai_mil.label.project import Project
from monai_mil.label.pseudonyms import keep_names_out_of_logs
from monai_mil.label.replies import asap_xml, dsa_json, geojson_reply
from monai_mil.label.tasks import Agreement, LabelStrategy, ModelTask, ScoreImages, TrainOnLabels, note_answer
from monai_mil.names import is_there
from monai_mil.slides import AnnotationFrame, frame_origin

logger = logging.getLogger(__name__)

_SCORING = "scores"


class MILApp(MONAILabelApp):
    """Bundles for multiple-instance learning behind MONAI Label's endpoints.

    A slide is answered as a whole, once; a client's rectangle only clips what is drawn. QuPath is answered in its own
    frame, the Digital Slide Archive in level-0 pixels of the whole slide.

    Args:
        app_dir: as ``monai-mil label init`` makes it.
        studies: folder of slides or scans, or the address of a remote store.
        conf: MONAI Label's ``--conf``; nothing of it is used.
    """

    studies: str

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        remote = studies.startswith(("http://", "https://"))
        folder = Path(app_dir, "studies") if remote else Path(studies)
        folder.mkdir(parents=True, exist_ok=True)
        self.project = Project(Path(app_dir), folder)
        self._folder = folder
        super().__init__(
            app_dir,
            studies,
            dict(conf or {}),
            name="monai-mil",
            description="Multiple-instance learning: heatmaps as annotations, training on weak labels",
        )
        keep_names_out_of_logs()

    def bundle_path(self, model: str | None) -> None:
        """No bundle of MONAI Label's own kind; what is no model is told before a task of it begins."""
        with told():
            self.project.model(model)

    def init_datastore(self) -> Any:
        """The project's images and labels; those of the Digital Slide Archive stay there."""
        if not self.studies.startswith(("http://", "https://")):
            return ProjectDatastore(self.project)
        beside_python = str(Path(sys.executable).parent)  # where dcmqi's tools are
        os.environ["PATH"] = os.pathsep.join([beside_python, os.environ.get("PATH", "")])
        settings.MONAI_LABEL_DICOMWEB_CACHE_PATH = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or str(self._folder)
        self.studies = self.studies.rstrip("/")
        remote = self.init_remote_datastore()
        return SeriesDatastore(self.project, remote) if isinstance(remote, DICOMWebDatastore) else remote

    def init_infers(self) -> dict[str, ModelTask]:
        """Every model."""
        return {name: ModelTask(self.project, model) for name, model in self.project.models.items()}

    def init_trainers(self) -> dict[str, TrainOnLabels]:
        """Training of every model."""
        return {name: TrainOnLabels(self.project, model) for name, model in self.project.models.items()}

    def init_strategies(self) -> dict[str, LabelStrategy]:
        """The strategies that the models allow."""
        with told():
            allowed = self.project.strategies()
        return {name: LabelStrategy(self.project, name, text) for name, text in allowed.items()}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Scores for the strategies, and agreement with the labels."""
        return {_SCORING: ScoreImages(self.project), "agreement": Agreement(self.project)}

    def info(self) -> dict[str, Any]:
        """What clients show; strategies as the models of this moment allow them."""
        self._strategies = self.init_strategies()
        return super().info()

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The next image or part of one; an empty answer where nothing is left."""
        strategy = request.get("strategy") or "uncertainty"
        with told():
            self.project.check_strategy(strategy)
        self._strategies = self.init_strategies()
        return super().next_sample({**request, "strategy": strategy})

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Start a scoring process only where something is to be scored, and never for every answer."""
        if method:
            return super().async_scoring(method, params)
        waiting = any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("scoring"))
        return {} if waiting or not self.project.stale() else super().async_scoring(_SCORING, params)

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Answer all images that a model reads; one that cannot be answered is told in its place.

        Args:
            request: MONAI Label's, with ``images`` ``all``, ``labeled`` or ``unlabeled`` or a list of names.
            datastore: another one than the application's.
        """
        store = self._datastore if datastore is None else datastore
        with told():
            kind = self.project.model(request.get("model")).bundle.reads
        of_kind = {image.name for image in self.project.images.all() if image.reads == kind}
        names = [name for name in self._batch_infer.get_images(request, store) if name in of_kind]
        return self._batch_infer({**_on_what_is_there(request), "images": names}, store, self._infer_or_tell)

    def _infer_or_tell(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        try:
            return self.infer(request, datastore)
        except HTTPException as error:
            return {"error": error.detail}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """A scan's heatmap as a label map, and the answer.

        Raises:
            HTTPException: there is no such model or scan, or it cannot be answered; says why.
        """
        said = request.get("image")
        with told():
            self.project.model(request.get("model"))
            if isinstance(said, str) and not _was_sent(said):
                self.project.images.find(said)
        return super().infer(request, datastore)

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """A slide's heatmap as annotations, in the format and frame of the client that asks.

        Raises:
            HTTPException: there is no such model or slide, or it cannot be answered; says why.
        """
        with told():
            _check_window(request)
            model = self.project.model(request.get("model"))
            if model.bundle.reads != "slides":
                raise SettingsError(f"model '{model.name}' reads scans: ask it for a scan, or another for a slide")
            output = request.get("output") or "dsa"
            with tempfile.TemporaryDirectory(prefix="monai-mil-") as scratch:
                image, offset = self._slide(request, model, Path(scratch))
                answer = self._answer(model, image, keep=offset is None)
            note_answer(self.project, model, image, annotator_of(request), answer)
        return self._reply(request, answer, output, offset)

    def _answer(self, model: ServedModel, image: StudyImage, *, keep: bool) -> Answer:
        place = self.project.place(image)
        return model.answer(*place) if keep else model.answer_once(*place)

    def _slide(
        self, request: dict[str, Any], model: ServedModel, scratch: Path
    ) -> tuple[StudyImage, tuple[int, int] | None]:
        """The slide that is asked about; of a picture that the client sent also where it lies, else None."""
        said = request.get("image")
        if isinstance(said, str) and not _was_sent(said):
            store = self._datastore
            if isinstance(store, ProjectDatastore):
                return self.project.answered(said, model), None
            path = store.get_image_uri(said)
            if not Path(path).exists():
                path = store.get_image(said, {"location": [0, 0], "size": [0, 0]})
            return StudyImage(said, Path(path), "slides"), None
        known = self.project.images.at(said) if isinstance(said, str) else None
        if known is not None:
            return known, None
        location = request.get("location") or (0, 0)
        corner = max(int(location[0]), 0), max(int(location[1]), 0)
        pixels: Any = said if isinstance(said, np.ndarray) else Path(str(said))
        path = patch_slide(pixels, scratch, model.settings.get("mpp"))
        return StudyImage(path.stem, path, "slides"), corner

    def _reply(
        self, request: dict[str, Any], answer: Answer, output: str, offset: tuple[int, int] | None
    ) -> dict[str, Any]:
        heatmap = answer.heatmap
        assert heatmap is not None
        frame: AnnotationFrame = "level0" if output == "dsa" else "qupath"
        x, y = frame_origin(frame, heatmap.frame.bounds)
        if offset is not None:
            x, y = -offset[0], -offset[1]
        window = None if offset is not None else _window(request, (x, y))
        area = float(request.get("min_poly_area") or 0)
        regions = heat_regions(heatmap, window=window, min_area=area, holes=output != "asap")
        facts = {
            **answer.facts,
            "location": list(request.get("location") or (0, 0)),
            "size": list(request.get("size") or (0, 0)),
        }
        name = f"{answer.model}: {facts['prediction']}"
        if output == "json":
            return {"file": None, "params": geojson_reply(regions, facts=facts, origin=(x, y))}
        if output == "asap":
            text, suffix = asap_xml(regions, name=name, facts=facts, origin=(x, y)), ".xml"
        else:
            described = {**facts, "desc": answer.note or ""}
            text, suffix = dsa_json(regions, heatmap if offset is None else None, name=name, facts=described), ".json"
        with tempfile.NamedTemporaryFile("w", suffix=suffix, delete=False, encoding="utf-8") as file:
            file.write(text)
        return {"file": file.name, "params": facts}


def _was_sent(image: str) -> bool:
    """Whether an image is named by its path, as MONAI Label names what a client has sent."""
    return Path(image).is_absolute() and is_there(Path(image))


def _check_window(request: Mapping[str, Any]) -> None:
    """Raise a SettingsError unless places and sizes of a request are numbers, two each."""
    tiles = request.get("wsi_tiles") or []
    is_tiles = isinstance(tiles, list) and all(isinstance(tile, dict) for tile in tiles)
    places = [request.get("location"), request.get("size")]
    if is_tiles:
        places += [tile.get(name, "absent") for tile in tiles for name in ("location", "size")]
    try:
        area = float(request.get("min_poly_area") or 0)
        good = is_tiles and np.isfinite(area) and all(not pair or _is_pair(pair) for pair in places)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise SettingsError(
            "location and size are two whole numbers each, wsi_tiles a list of such, min_poly_area is a number"
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(np.isfinite(float(each)) for each in value)


def _window(request: Mapping[str, Any], origin: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The client's rectangle in level-0 pixels; None where it asks for the whole slide, as the Archive does by -1."""
    location, size = request.get("location") or (0, 0), request.get("size") or (0, 0)
    tiles = request.get("wsi_tiles")
    if tiles:
        corners = np.array([(*tile["location"], *np.add(tile["location"], tile["size"])) for tile in tiles], float)
        x0, y0 = corners[:, :2].min(axis=0).tolist()
        x1, y1 = corners[:, 2:].max(axis=0).tolist()
    elif min(size) <= 0:
        return None
    else:
        x0, y0 = max(location[0], 0), max(location[1], 0)
        x1, y1 = x0 + size[0], y0 + size[1]
    return x0 + origin[0], y0 + origin[1], x1 + origin[0], y1 + origin[1]


def _on_what_is_there(request: Mapping[str, Any]) -> dict[str, Any]:
    if torch.cuda.is_available():
        return dict(request)
    return {**request, "multi_gpu": False, "device": "cpu"}
