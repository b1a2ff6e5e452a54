"""MONAI Label's datastore over a project: images in sub-folders, labels in the project's store. Needs MONAI Label."""

from __future__ import annotations

import io
import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monai_mil.errors import CohortError, MonaiMILError, OutputError
from monai_mil.files import replacing
from monai_mil.label.annotator import annotator_of
from monai_mil.label.images import StudyImage
from monai_mil.label.masks import has_finding
from monai_mil.label.project import Project
from monai_mil.label.submissions import patch_of
from monai_mil.names import file_stem, names_a_file

logger = logging.getLogger(__name__)


@contextmanager
def told() -> Iterator[None]:
    """Answer a user's error with its one sentence, see :func:`status_of`."""
    try:
        yield
    except MonaiMILError as error:
        raise HTTPException(status_code=status_of(error), detail=str(error)) from error


def status_of(error: Exception) -> int:
    """Of HTTP: 404 of what is not there, 507 of a full disk, else 400."""
    return 404 if isinstance(error, CohortError) else 507 if isinstance(error, OutputError) else 400


class ProjectDatastore(Datastore):
    """The images and labels of a project, as MONAI Label's endpoints ask for them.

    MONAI Label's own local datastore knows no sub-folders, takes a slide's ``.xml`` beside it for the slide, keeps one
    label an image, and loses entries when two processes write.

    Args:
        project: what is labelled.
    """

    def __init__(self, project: Project) -> None:
        self.project = project

    def name(self) -> str:
        """See MONAI Label's interface, as for all that follow."""
        return "monai-mil"

    def set_name(self, name: str) -> None:
        """The name stays."""

    def description(self) -> str:
        """What the studies are."""
        return "slides and scans with weak labels"

    def set_description(self, description: str) -> None:
        """The description stays."""

    def datalist(self) -> list[dict[str, Any]]:
        """Images with the class that they are labelled with, by the first model."""
        labels = self.project.labels(self.project.model())
        return [{"image": str(self._image(name).path), "label": label.name} for name, label in labels.items()]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tags of the labels there are."""
        name = self._image(image_id).name
        found = {DefaultLabelTag.FINAL.value: name} if self.project.store.read(name).submissions else {}
        return found | ({DefaultLabelTag.ORIGINAL.value: name} if self._original(name) else {})

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The image's name where it has such a label."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The bytes of an image's file."""
        return io.BytesIO(self._image(image_id).path.read_bytes())

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image, of a patch that of its slide; empty where there is none."""
        try:
            return str(self.project.images.find(image_id).path)
        except MonaiMILError:
            patch = patch_of(image_id)
            return self.get_image_uri(patch.parent) if patch else ""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Where an image lies, and what the models say of it."""
        image = self._image(image_id)
        record = self.project.store.read(image.name)
        answers = {name: dict(scores.probabilities) for name, scores in record.scores.items()}
        return {"path": str(image.path), "name": image.path.name, "probabilities": answers}

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """The bytes of a label's file."""
        uri = self.get_label_uri(label_id, label_tag)
        return io.BytesIO(Path(uri).read_bytes()) if uri else None

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The latest submitted file, or the model's mask under the tag ``original``; empty where there is none."""
        name = self._image(label_id).name
        if label_tag == DefaultLabelTag.ORIGINAL.value:
            return str(self._original(name) or "")
        files = [each.file for each in self.project.store.read(name).submissions if each.file]
        return str(self.project.store.folder / files[-1]) if files else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """All submissions of an image: who, when, what, and the model that had been shown."""
        record = self.project.store.read(self._image(label_id).name)
        return {
            "submissions": [
                {
                    "number": each.number,
                    "annotator": each.annotator,
                    "time": each.time,
                    "label": each.label,
                    "source": each.source,
                    "model": each.model,
                    "fingerprint": each.fingerprint,
                }
                for each in record.submissions
            ]
        }

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images with a label, of a submission or of the project's table."""
        with told():
            return self.project.labelled()

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images without one."""
        labelled = set(self.get_labeled_images())
        return [image.name for image in self.project.images.all() if image.name not in labelled]

    def list_images(self) -> list[str]:
        """Names of all images."""
        return [image.name for image in self.project.images.all()]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP archive of the store's records and submitted files; slides and scans are too large for one."""
        folder = self.project.store.folder
        with NamedTemporaryFile(suffix=".zip", delete=False) as file, zipfile.ZipFile(file, "w") as archive:
            for part in ("images", "submissions"):
                for path in sorted((folder / part).rglob("*")):
                    if path.is_file() and not path.name.startswith("."):
                        archive.write(path, path.relative_to(folder))
            return file.name

    def refresh(self) -> None:
        """Look for images again."""
        self.project.images.refresh()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take a new slide or scan; a patch of a slide that is there is that slide and is not kept.

        Raises:
            HTTPException: the name is none of a file, or an image of this name is there.
        """
        patch = patch_of(image_id or "")
        if patch is not None and self.get_image_uri(patch.parent):
            return image_id
        source = Path(image_filename)
        name = image_id or source.stem
        if not names_a_file(name):
            raise HTTPException(status_code=400, detail=f"'{name}' cannot name a file; choose another image id")
        suffix = "".join(source.suffixes[-2:]) if source.name.lower().endswith(".gz") else source.suffix
        place = self.project.images.folder / f"{file_stem(name)}{suffix}"
        if place.exists() or self.get_image_uri(name):
            raise HTTPException(status_code=409, detail=f"an image '{name}' is there already; it is not replaced")
        with told(), replacing(place) as partial:
            shutil.copyfile(source, partial)
        self.refresh()
        if not self.get_image_uri(name):
            place.unlink()
            raise HTTPException(status_code=400, detail=f"'{place.name}' is no slide or scan that the models here read")
        return name

    def remove_image(self, image_id: str) -> None:
        """Nothing of a study is ever removed."""
        raise HTTPException(status_code=405, detail="images are removed in their folder, not through the server")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep what an annotator submitted, or under the tag ``original`` what a model drew.

        Raises:
            HTTPException: it says nothing, or there is no such image; the detail says why in one sentence.
        """
        if label_tag == DefaultLabelTag.ORIGINAL.value:
            image = self._image(image_id)
            with told():
                if image.reads == "scans":
                    has_finding(Path(label_filename))  # can be read, that is
            return self._keep_original(image, Path(label_filename))
        params = {name: value for name, value in (label_info or {}).items() if name != "label_info"}
        with told():
            self.project.submit(image_id, Path(label_filename), annotator_of(params), params)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """What was submitted is never removed; a later submission takes its place."""
        raise HTTPException(status_code=405, detail="a submitted label stays; submit the right one")

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Nothing: what was given to whom is kept already."""

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Nothing: a submission stays as it was made."""

    def status(self) -> dict[str, Any]:
        """How many images there are and how many are labelled."""
        labelled = self.get_labeled_images()
        return {
            "total": len(self.list_images()),
            "completed": len(labelled),
            "label_tags": {DefaultLabelTag.FINAL.value: len(labelled)},
        }

    def json(self) -> dict[str, Any]:
        """Images with their labels."""
        return {"objects": {name: self.get_labels_by_image_id(name) for name in self.list_images()}}

    def _image(self, name: str) -> StudyImage:
        patch = patch_of(name)
        with told():
            try:
                return self.project.images.find(name)
            except CohortError:
                if patch is None:
                    raise
                return self.project.images.find(patch.parent)

    def _original(self, name: str) -> Path | None:
        folder = self.project.store.folder / "original"
        return next((path for path in folder.glob(f"{file_stem(name)}.*") if path.is_file()), None)

    def _keep_original(self, image: StudyImage, file: Path) -> str:
        suffix = "".join(file.suffixes[-2:]) if file.name.lower().endswith(".gz") else file.suffix
        with told(), replacing(self.project.store.folder / "original" / f"{file_stem(image.name)}{suffix}") as partial:
            shutil.copyfile(file, partial)
        return image.name
