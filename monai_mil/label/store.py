"""What annotators and models have said of every image: one file an image, changed under a lock, never lost.

MONAI Label's own ``datastore_v2.json`` is one file that every process holds in memory and overwrites, so that two that
write lose each other's entries. Here nothing is held: a change is read, made and written as a whole under the image's
lock, and it is on the disk before it is answered.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monai_mil.errors import BagError
from monai_mil.files import make_folder, replacing
from monai_mil.locks import locked
from monai_mil.names import file_stem

FORMAT = 1
_MOST_SERVED = 200


@dataclass(frozen=True)
class Submission:
    """One label that somebody submitted.

    Attributes:
        number: 1 for the first of the image.
        annotator: who; empty where the client does not say.
        time: when, ISO 8601 in UTC.
        label: the class that it gives the whole image; None where it gives none.
        source: what in it says so, or why it does not (see :class:`monai_mil.label.WeakLabel`).
        model: the model whose answer this annotator had been shown, with ``fingerprint``; empty where none was.
        fingerprint: digest of that model's weights.
        file: the submitted file, whole, below the store's folder; empty where only a label was submitted.
        boxes: x0, y0, x1, y1 of what was drawn, in level-0 pixels.
        params: what else the client sent.
    """

    number: int
    annotator: str
    time: str
    label: str | None
    source: str
    model: str = ""
    fingerprint: str = ""
    file: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What a model says of an image, for choosing what is labelled next.

    Attributes:
        fingerprint: digest of the model's weights; scores of other weights are stale.
        values: by their names.
        prediction: the answer in words.
        probabilities: of every class.
    """

    fingerprint: str
    values: Mapping[str, float]
    prediction: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """All that is known of one image.

    Attributes:
        image: its name.
        submissions: every label ever submitted, oldest first.
        scores: of each model, by its name.
        shown: by annotator, the model whose answer they were shown last and its fingerprint.
        served: by annotator, when the image was given to them to be labelled.
    """

    image: str
    submissions: tuple[Submission, ...] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)
    shown: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    served: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> Submission | None:
        """The latest submission that gives the image a label; of several annotators the last word counts."""
        return next((each for each in reversed(self.submissions) if each.label is not None), None)

    @property
    def annotators(self) -> set[str]:
        """Who has submitted anything."""
        return {each.annotator for each in self.submissions}


class LabelStore:
    """The records of a folder of studies; any number of processes may read and write them at once.

    Args:
        folder: where they lie; made when something is written.

    Examples:
        >>> from monai_mil.label import LabelStore
        >>> store = LabelStore(folder / ".mil")
        >>> _ = store.show("S-1", "anna", "pathology_asmil", "4f2a")
        >>> _ = store.submit("S-1", "anna", label="tumor", source="bag_label")
        >>> label = LabelStore(folder / ".mil").read("S-1").label
        >>> label.label, label.annotator, label.model, label.fingerprint
        ('tumor', 'anna', 'pathology_asmil', '4f2a')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, image: str) -> Record:
        """The record of an image; an empty one where nothing is known.

        Raises:
            BagError: its file is damaged; names it.
        """
        return _read(self._path(image), image)

    def records(self) -> Iterator[Record]:
        """The records of all images of which anything is known."""
        for path in sorted((self.folder / "images").glob("*.json")):
            yield _read(path, path.stem)

    def submit(
        self,
        image: str,
        annotator: str,
        *,
        label: str | None,
        source: str,
        file: Path | None = None,
        boxes: tuple[tuple[float, float, float, float], ...] = (),
        params: Mapping[str, Any] | None = None,
    ) -> Submission:
        """Keep a label, with a copy of the whole submitted file and the model that the annotator had been shown.

        When this returns it is on the disk; what was submitted before stays.

        Raises:
            OutputError: it cannot be written; then the submission is not kept, and the client must be told.
        """
        with self._changing(image) as content:
            earlier = content.get("submissions", [])
            number = len(earlier) + 1
            kept = "" if file is None else self._keep(image, number, file)
            model, fingerprint = content.get("shown", {}).get(annotator, ("", ""))
            submission = Submission(
                number, annotator, _now(), label, source, model, fingerprint, kept, boxes, dict(params or {})
            )
            content["submissions"] = [*earlier, asdict(submission)]
        return submission

    def score(self, image: str, model: str, scores: Scores) -> None:
        """Keep a model's scores in place of its older ones."""
        with self._changing(image) as content:
            content["scores"] = {**content.get("scores", {}), model: asdict(scores)}

    def show(self, image: str, annotator: str, model: str, fingerprint: str) -> None:
        """Note that an annotator was shown a model's answer."""
        with self._changing(image) as content:
            others = {name: said for name, said in content.get("shown", {}).items() if name != annotator}
            content["shown"] = {**others, annotator: [model, fingerprint]}

    def serve(self, image: str, annotator: str) -> None:
        """Note that an annotator was given the image."""
        with self._changing(image) as content:
            served = {**content.get("served", {}), annotator: _now()}
            content["served"] = dict(list(served.items())[-_MOST_SERVED:])

    @contextmanager
    def _changing(self, image: str) -> Iterator[dict[str, Any]]:
        path = self._path(image)
        make_folder(path.parent)
        with locked(path.with_name(f".{path.name}.lock")):
            content = _content(path) or {"format": FORMAT, "image": image}
            yield content
            with replacing(path) as partial:
                partial.write_text(json.dumps(content), encoding="utf-8")

    def _keep(self, image: str, number: int, file: Path) -> str:
        """Copy a submitted file; one that a killed process left without an entry is never overwritten."""
        folder = self.folder / "submissions" / file_stem(image)
        suffix = "".join(file.suffixes[-2:]) if file.name.lower().endswith(".gz") else file.suffix
        place = folder / f"{number:04}{suffix}"
        attempt = 1
        while place.exists():
            attempt += 1
            place = folder / f"{number:04}-{attempt}{suffix}"
        with replacing(place) as partial:
            shutil.copyfile(file, partial)
        return os.fspath(place.relative_to(self.folder))

    def _path(self, image: str) -> Path:
        return self.folder / "images" / f"{file_stem(image)}.json"


def _read(path: Path, image: str) -> Record:
    content = _content(path)
    if content is None:
        return Record(image)
    try:
        return Record(
            str(content["image"]),
            tuple(
                Submission(**{**each, "boxes": tuple(tuple(box) for box in each.get("boxes", ()))})
                for each in content.get("submissions", [])
            ),
            {name: Scores(**each) for name, each in content.get("scores", {}).items()},
            {name: (model, fingerprint) for name, (model, fingerprint) in content.get("shown", {}).items()},
            content.get("served", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise ValueError(f"format {content['format']} is of a later version; update monai-mil")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return content


def _damaged(path: Path, error: Exception) -> BagError:
    return BagError(f"record '{path}': cannot be read ({error!r}); restore it, the submitted files lie beside it")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
