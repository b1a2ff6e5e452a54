"""What an engine knows of one slide or scan after an iteration: the one place that reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps import SlideFrame, to_numpy
from monai_mil.networks import instance_axis
from monai_mil.scans import Depth, LungField, ScanFrame

_NAMES = ("scan_id", "slide_id")
_FRAME = ("level0_size", "mpp", "tile_size_level0", "bounds")


class UnnamedCaseError(CohortError, ValueError):
    """A case that has no name; the cohort or the data list gives none."""


@dataclass(frozen=True, eq=False)
class Case:
    """One slide or scan, its label and what the network said of it; made by :meth:`of`, one by one :func:`read_cases`.

    Attributes:
        name: of the slide or scan, fit to name a file: ``scan_id`` or else ``slide_id`` of the item, else of the meta
            data of its image; of a patient's bag the patient's.
        id_column: what tables call the name: ``scan_id`` of a scan, ``patient_id`` of a patient's bag, else
            ``slide_id``.
        patient_id: whose it is; the name where the cohort does not say.
        label: class index, one value a class (NaN: unknown), or time and event; float64 ``[k]``, None if there is none.
        answer: the network's, ``[c]``; None where the item does not hold it.
        answer_is_logits: whether ``answer`` are logits; else they are taken for probabilities.
        meta: facts of the image, as ``LoadBagd`` and ``EmbedScand`` give them.
        mask: which of the padded instances are real, bool ``[n]``; None where there is no padding.

    Examples:
        >>> import torch
        >>> from monai_mil.savers import Case
        >>> item = {"slide_id": "S-1", "label": 1, "pred": {"logits": torch.tensor([0.0, 2.0]), "bag": torch.zeros(8)}}
        >>> case = Case.of(item)
        >>> case.name, case.patient_id, case.label, case.answer_is_logits
        ('S-1', 'S-1', array([1.]), True)
    """

    name: str
    id_column: str
    patient_id: str
    label: np.ndarray | None
    answer: np.ndarray | None
    answer_is_logits: bool
    meta: Mapping[str, Any]
    mask: np.ndarray | None
    _item: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, item: Mapping[str, Any], unnamed: str | None = None) -> Case:
        """The case that one item of a batch and of the engine's output are together.

        Args:
            item: may hold the network's whole output as ``pred``.
            unnamed: the name of an item without one.

        Raises:
            UnnamedCaseError: it has no name, and none is given.
            CohortError: its name is no plain file name.
        """
        pred = item.get("pred")
        is_logits = False
        if isinstance(pred, Mapping):
            item, is_logits = {**item, **pred}, "prob" not in pred
            pred = pred["logits" if is_logits else "prob"]
        meta = {**getattr(item.get("image"), "meta", {}), **{key: item[key] for key in _FRAME if key in item}}
        name, column = _name(item, meta, unnamed)
        label = None if item.get("label") is None else np.ravel(to_numpy(item["label"])).astype(float)
        return cls(
            name=name,
            id_column=column,
            patient_id=str(item.get("patient_id", name)),
            label=label,
            answer=None if pred is None else as_numbers(pred),
            answer_is_logits=is_logits,
            meta=meta,
            mask=None if item.get("mask") is None else _padded(as_numbers(item["mask"])),
            _item=item,
        )

    @property
    def remarks(self) -> str:
        """What the reader assumed, repaired or left out, the gravest first; empty where nothing."""
        return str(self.meta.get("remarks") or "")

    @property
    def slide_metas(self) -> list[dict[str, Any]]:
        """Of a patient's bag the meta data of its slides or scans, see ``bags.join_bags``; else none."""
        return json.loads(self.meta["slides"]) if self.meta.get("slides") else []

    @property
    def slide_names(self) -> tuple[str, ...]:
        """Of a patient's bag its slides or scans; else the case's own name."""
        return tuple(str(each["slide_id"]) for each in self.slide_metas) or (self.name,)

    @property
    def slide_column(self) -> str:
        """What tables call these: ``slide_id`` or ``scan_id``."""
        metas = self.slide_metas
        return str(metas[0]["id_column"]) if metas else self.id_column

    @property
    def beginning(self) -> dict[str, str]:
        """How a row of the case begins, see :func:`row_beginning`."""
        return row_beginning(self.name, self.id_column, self.patient_id, self.slide_names, self.slide_column)

    def slides(self) -> Iterator[Case]:
        """The case itself; of a patient's bag its slides or scans, each with its own instances, name and frame.

        Label and answer stay the patient's.

        Raises:
            CohortError: the item does not say which instance is of which slide.
        """
        metas = self.slide_metas
        if not metas:
            yield self
            return
        index = self._item.get("slide_index")
        if index is None:
            raise CohortError(f"{self.text}: no 'slide_index' that tells its slides apart; load its bags with LoadBagd")
        of_slide = as_numbers(index)
        for number, meta in enumerate(metas):
            own = of_slide == number if self.mask is None else (of_slide == number) & self.mask
            yield replace(self, name=meta["slide_id"], id_column=meta["id_column"], meta=meta, mask=own)

    @property
    def shares_its_answer(self) -> bool:
        """Whether the answer is for several slides or scans of a patient together, this one among them."""
        slides = getattr(self._item.get("image"), "meta", {}).get("slides")
        return len(json.loads(slides or "[]")) > 1

    @property
    def text(self) -> str:
        """The case as an error names it."""
        return f"{self.id_column.removesuffix('_id')} '{self.name}'"

    @property
    def bag_size(self) -> int:
        """How many instances the network's attention is shared by: those of the bag, of a patient's all its slides'.

        Raises:
            CohortError: the item has neither coordinates nor a mask.
        """
        mask, coords = self._item.get("mask"), self._item.get("coords")
        if mask is None and coords is None:
            raise CohortError(f"{self.text}: no 'coords' among its keys; ask for a bag with its coordinates")
        given = as_numbers(coords if mask is None else mask)
        return len(given) if mask is None else int(given.reshape(len(given), -1).any(axis=1).sum())

    def values(self, key: str) -> np.ndarray | None:
        """What the item holds under ``key``, without padding; None where it holds nothing.

        Which axis is that of the instances :data:`monai_mil.networks.KEYS` says. Of a key that is not there it is the
        one as long as the padded bag.

        Raises:
            CohortError: it has another number of instances than the mask, or several axes may be theirs.
        """
        given = self._item.get(key)
        if given is None:
            return None
        values = as_numbers(given)
        axis = None if self.mask is None else self._instance_axis(key, values)
        return values if axis is None or self.mask is None else np.compress(self.mask, values, axis=axis)

    @property
    def risk(self) -> float | None:
        """The survival network's, higher for an earlier event; None where there is none."""
        return None if self._item.get("risk") is None else float(self._item["risk"])

    @property
    def follow_up(self) -> tuple[float, float]:
        """Time and event of a survival cohort; NaN where unknown."""
        if self.label is None:
            return math.nan, math.nan
        time, event = self.label.tolist()
        return time, event

    def probabilities(self, multi_label: bool) -> np.ndarray:
        """Of every output of the network, ``[c]``.

        Raises:
            CohortError: there is no answer, or it is not in [0, 1].
        """
        if self.answer is None:
            raise CohortError(
                f"{self.text}: no 'pred' among its keys; keep the network's answer in the engine's output"
            )
        prob = self._softmax_or_sigmoid(multi_label) if self.answer_is_logits else self.answer
        if not ((prob >= -1e-6) & (prob <= 1 + 1e-6)).all():
            raise CohortError(f"{self.text}: predictions {prob.tolist()} are no probabilities; add Activationsd")
        return prob

    @property
    def output_count(self) -> int:
        """How many outputs the network has; 0 where the case does not hold its answer."""
        return 0 if self.answer is None else self.answer.size

    @property
    def probable_class(self) -> int:
        """The class the network thinks most probable; 0 where the case does not hold its answer."""
        return 0 if self.answer is None else int(self.answer.argmax())

    def is_positive(self, class_index: int | None) -> bool | None:
        """Whether the case is labelled with a class, None where that is not known.

        Args:
            class_index: the class; None for the last label, or for any class but the first. A network with one single
                output has one class, the second of two.
        """
        if self.label is None:
            return None
        value = self.label[-1 if self.label.size == 1 or class_index is None else class_index]
        if np.isnan(value) or value < 0:
            return None
        if self.label.size > 1 or class_index is None or self.output_count == 1:
            return bool(value > 0)
        return bool(value == class_index)

    @cached_property
    def frame(self) -> SlideFrame:
        """The slide's, from the meta data; what a foreign bag leaves out is read from the slide.

        Raises:
            CohortError: a fact is missing and there is no slide to read it from.
        """
        if self.meta.get("scan_frame"):
            raise CohortError(
                f"{self.text}: a scan has slices, no tiles; write its results with SliceSaver and ScanDiceSaver"
            )
        path = str(self.meta.get("slide_path") or "") or None
        mpp, size, tile_size = (_known(self.meta.get(key)) for key in ("mpp", "level0_size", "tile_size_level0"))
        if path is not None and (mpp is None or size is None) and Path(path).exists():
            from monai_mil.slides import open_slide

            with open_slide(path, mpp=None if mpp is None else float(mpp[0])) as slide:
                mpp, size = np.array([slide.mpp]), np.array(slide.size)
        if mpp is None or size is None or tile_size is None:
            facts = {"mpp": mpp, "level0_size": size, "tile_size_level0": tile_size}
            missing = ", ".join(name for name, value in facts.items() if value is None)
            raise CohortError(
                f"{self.text}: its bag does not say {missing}; embed it with 'monai-mil embed', "
                "or name the slide's file in the cohort"
            )
        sides = int(size[0]), int(size[1])
        return SlideFrame(
            self.name,
            path,
            sides,
            float(mpp[0]),
            float(tile_size[0]),
            bounds=_bounds(self.meta),
            source=str(self.meta.get("source") or "") or None,
            series=_chosen(self.meta.get("series")),
            plane=_chosen(self.meta.get("plane")),
        )

    @cached_property
    def scan_frame(self) -> ScanFrame:
        """The scan's, from the meta data.

        Raises:
            CohortError: it is not there.
        """
        text = self.meta.get("scan_frame")
        if not text:
            raise CohortError(
                f"{self.text}: its bag does not say where its slices lie; embed it with 'monai-mil embed-scans'"
            )
        return ScanFrame.from_json(str(text))

    @property
    def depth(self) -> Depth | None:
        """How the slices of the scan became the case's instances; None where each is one."""
        text = self.meta.get("scan_depth")
        return Depth.from_json(str(text)) if text else None

    @property
    def lungs(self) -> LungField | None:
        """The lungs outside of which the network saw nothing; None where it saw all."""
        text = self.meta.get("scan_lungs")
        return LungField.from_json(str(text)) if text else None

    def _instance_axis(self, key: str, values: np.ndarray) -> int | None:
        assert self.mask is not None
        padded = len(self.mask)
        try:
            axis = instance_axis(key)
        except KeyError:
            found = [axis for axis, length in enumerate(values.shape) if length == padded]
            if len(found) > 1:
                raise CohortError(
                    f"{self.text}: axes {found} of '{key}' {list(values.shape)} are as long as the padded bag; say in "
                    "monai_mil.networks.contract which is that of the instances, or take one bag a batch"
                ) from None
            return found[0] if found else None
        if axis is None:
            return None
        axis = min(axis, values.ndim - 1)  # scores of one row may come without an axis of rows
        if values.shape[axis] == padded:
            return axis
        if values.shape[axis] == np.count_nonzero(self.mask):
            return None  # somebody has removed it already
        raise CohortError(
            f"{self.text}: '{key}' has {values.shape[axis]} instances, the padded bag {padded} of which "
            f"{np.count_nonzero(self.mask)} are real"
        )

    def _softmax_or_sigmoid(self, multi_label: bool) -> np.ndarray:
        assert self.answer is not None
        if multi_label or self.answer.shape == (1,):
            return 1 / (1 + np.exp(-self.answer))
        powers = np.exp(self.answer - self.answer.max())
        return powers / powers.sum()


def row_beginning(name: str, id_column: str, patient: str, slides: Sequence[str], slide_column: str) -> dict[str, str]:
    """How a row of a table begins.

    Args:
        name: of the slide, scan or patient.
        id_column: what tables call it.
        patient: whose it is.
        slides: of a patient the slides or scans, whose number and names, joined by ``;``, have columns of their own.
        slide_column: what tables call one of them.
    """
    begin = {id_column: name, "patient_id": patient}
    if id_column != "patient_id":
        return begin
    return begin | {f"{slide_column.removesuffix('_id')}s": str(len(slides)), f"{slide_column}s": ";".join(slides)}


def read_cases(engine: Any) -> Iterator[Case]:
    """The cases of an engine's iteration; what is in the output stands before what is in the batch.

    Raises:
        ValueError: the engine does not decollate.
        CohortError: a case has no name, or none that can name a file.
    """
    return map(Case.of, read_items(engine))


def read_items(engine: Any) -> Iterator[dict[str, Any]]:
    """The items of an engine's iteration, from which :class:`Case` is made.

    Raises:
        ValueError: the engine does not decollate.
    """
    batch, output = engine.state.batch, engine.state.output
    if not isinstance(output, Sequence):
        raise ValueError("savers need decollated items: keep decollate=True of the evaluator")
    given = batch if isinstance(batch, Sequence) else [{}] * len(output)
    for before, after in zip(given, output, strict=True):
        yield {**before, **after}


def as_numbers(values: Any) -> np.ndarray:
    """A value, a list or a tensor as an array of at least one dimension."""
    return np.atleast_1d(to_numpy(values))


def _name(item: Mapping[str, Any], meta: Mapping[str, Any], unnamed: str | None) -> tuple[str, str]:
    """The case's name and the column of tables it stands in."""
    if meta.get("slides"):
        return str(item.get("patient_id") or meta["slide_id"]), "patient_id"
    found = [
        (source[column], column) for source in (item, meta) for column in _NAMES if source.get(column) not in (None, "")
    ]
    if not found and unnamed is None:
        raise UnnamedCaseError(
            "a case of the engine has no 'scan_id' or 'slide_id', neither as a key nor in its image's meta data; name "
            "the cases in the cohort or the data list"
        )
    name, column = found[0] if found else (unnamed, "slide_id")
    if column == "slide_id" and "slide_id" not in item and meta.get("scan_frame"):
        column = "scan_id"  # bags of scans name them so
    if Path(str(name)).name != str(name):
        raise CohortError(f"{column} '{name}' cannot name a file; use a name without '/'")
    return str(name), column


def _padded(mask: np.ndarray) -> np.ndarray | None:
    """Which instances have anything real, bool ``[n]``, of a mask of instances or tokens; None where all have."""
    real: np.ndarray = np.asarray(mask, dtype=bool).reshape(len(mask), -1).max(axis=1)
    return None if real.all() else real


def _chosen(number: Any) -> int | None:
    """The number of a scene or focal plane; None where nobody chose, which ``LoadBagd`` writes as -1."""
    return None if number is None or int(number) < 0 else int(number)


def _bounds(meta: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """The scanned part of the slide; None where the bag does not say it and ``LoadBagd`` writes 0."""
    if "bounds" not in meta:
        return None
    x, y, width, height = as_numbers(meta["bounds"]).astype(int).tolist()
    return (x, y, width, height) if width > 0 else None


def _known(fact: Any) -> np.ndarray | None:
    """A number or a pair of the meta data; None for what ``LoadBagd`` writes where a bag does not say: NaN or 0."""
    values = None if fact is None else as_numbers(fact)
    return values if values is not None and (values > 0).all() else None
