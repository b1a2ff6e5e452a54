"""What an engine knows of one case, read from its decollated batch and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps.heatmap import SlideFrame, as_array
from monai_mil.metrics.operating_point import decisions
from monai_mil.scans import Depth, LungField, ScanFrame

_FRAME = ("level0_size", "mpp", "tile_size_level0")


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's answer for one slide or scan.

    Attributes:
        slide_id: the slide or scan.
        patient_id: whose it is; the slide's id where the cohort does not say.
        prob: probability of every class, float64 ``[c]``.
        classes: their names.
        multi_label: classes do not exclude each other.
        label: class index, or one value for every class (NaN: unknown), or None.
        id_column: what tables call the first: ``slide_id``, or ``scan_id`` for a scan.
        operating_points: the probability from which on each class is called, see
            :func:`monai_mil.metrics.operating_point.decisions`; None calls the most probable class, or all of at least
            0.5.
    """

    slide_id: str
    patient_id: str
    prob: np.ndarray
    classes: tuple[str, ...]
    multi_label: bool
    label: int | tuple[float, ...] | None
    id_column: str = "slide_id"
    operating_points: tuple[float, ...] | None = None

    @property
    def called(self) -> np.ndarray:
        """True for the class, or classes, that the answer names, bool ``[c]``."""
        points = self.operating_points or (0.5,) * len(self.classes)
        if self.operating_points is None and not self.multi_label:
            return np.arange(len(self.classes)) == self.prob.argmax()
        return decisions(self.prob[None], points, exclusive=not self.multi_label)[0] > 0

    @property
    def text(self) -> str:
        """The answer in words: the class, or all called ones joined by ``;``."""
        return ";".join(name for name, called in zip(self.classes, self.called, strict=True) if called)

    @property
    def label_text(self) -> str:
        """The label in the words of ``text``; empty where it is not known."""
        if isinstance(self.label, tuple):
            return ";".join(name for name, value in zip(self.classes, self.label, strict=True) if value >= 0.5)
        return self.classes[self.label] if self.label is not None and self.label >= 0 else ""

    def row(self) -> dict[str, str]:
        """The row of ``predictions.csv``."""
        row = {
            self.id_column: self.slide_id,
            "patient_id": self.patient_id,
            "label": self.label_text,
            "pred": self.text,
        }
        row |= {f"prob_{name}": f"{prob:.6g}" for name, prob in zip(self.classes, self.prob, strict=True)}
        if self.multi_label:
            known = self.label if isinstance(self.label, tuple) else (np.nan,) * len(self.classes)
            row |= {
                f"label_{name}": "" if np.isnan(value) else f"{value:g}"
                for name, value in zip(self.classes, known, strict=True)
            }
        if self.operating_points is not None:
            row |= {
                f"operating_point_{name}": f"{point:.6g}"
                for name, point in zip(self.classes, self.operating_points, strict=True)
            }
        return row

    def attributes(self) -> dict[str, Any]:
        """What a heatmap keeps of it, for titles."""
        return {
            "prediction": self.text or "none",
            "probability": round(float((self.prob[self.called] if self.called.any() else self.prob).max()), 6),
            "label": self.label_text,
        }


def cases(engine: Any) -> Iterator[dict[str, Any]]:
    """The items of an engine's iteration; what is in the output stands before what is in the batch.

    Raises:
        ValueError: the engine does not decollate.
    """
    batch, output = engine.state.batch, engine.state.output
    if not isinstance(output, Sequence):
        raise ValueError("savers need decollated items: keep decollate=True of the evaluator")
    for given, made in zip(batch if isinstance(batch, Sequence) else [{}] * len(output), output, strict=True):
        item = {**given, **made}
        if isinstance(item.get("pred"), Mapping):
            item = {**item, **item["pred"]}
        yield item


def case_id(item: Mapping[str, Any]) -> str:
    """The slide's or scan's name, fit to be a file's name.

    Raises:
        CohortError: there is none, or it is no plain file name.
    """
    column, meta = id_column(item), _meta(item)
    name = item.get(column, meta.get(column, meta.get("slide_id")))
    if name is None:
        raise CohortError(
            "a case of the engine has no 'slide_id' or 'scan_id', neither as a key nor in its image's meta data"
        )
    if Path(str(name)).name != str(name):
        raise CohortError(f"{column} '{name}' cannot name a file; use a name without '/'")
    return str(name)


def id_column(item: Mapping[str, Any]) -> str:
    """The column of tables that names the case: ``scan_id`` of a scan, else ``slide_id``."""
    given = next((column for column in ("scan_id", "slide_id") if column in item), None)
    return given or ("scan_id" if _meta(item).get("scan_id") or _meta(item).get("scan_frame") else "slide_id")


def case_text(item: Mapping[str, Any]) -> str:
    """The case as an error names it."""
    return f"{id_column(item).removesuffix('_id')} '{case_id(item)}'"


def read_probabilities(item: Mapping[str, Any], multi_label: bool) -> np.ndarray:
    """``pred`` of one case, ``[c]``: probabilities, or ``prob`` or ``logits`` of the network's output dict.

    Raises:
        CohortError: they are not in [0, 1].
    """
    given = item["pred"]
    if isinstance(given, Mapping):
        logits = None if "prob" in given else _numbers(given["logits"])
        prob = _numbers(given["prob"]) if logits is None else _probabilities(logits, multi_label)
    else:
        prob = _numbers(given)
    if not ((prob >= -1e-6) & (prob <= 1 + 1e-6)).all():
        raise CohortError(f"{case_text(item)}: predictions {prob.tolist()} are no probabilities; add Activationsd")
    return prob


def output_count(item: Mapping[str, Any]) -> int:
    """How many outputs the network has; 0 where the case does not hold its answer."""
    answer = _answer(item)
    return 0 if answer is None else answer.size


def read_prediction(
    item: Mapping[str, Any],
    classes: Sequence[str],
    multi_label: bool,
    operating_points: Sequence[float] | None = None,
) -> Prediction:
    """The prediction of one case.

    ``pred`` is as in :func:`read_probabilities`. One single probability with two classes is that of the second.

    Args:
        item: the case.
        classes: their names.
        multi_label: classes do not exclude each other.
        operating_points: one a class, or that of the second of two exclusive classes; see :class:`Prediction`.

    Raises:
        CohortError: ``pred`` fits neither the classes nor [0, 1], or the operating points do not fit the classes.
    """
    where = case_text(item)
    prob = read_probabilities(item, multi_label)
    if prob.shape == (1,) and len(classes) == 2 and not multi_label:
        prob = np.array([1 - prob[0], prob[0]])
    if prob.shape != (len(classes),):
        raise CohortError(f"{where}: {prob.size} predictions for the {len(classes)} classes {list(classes)}")
    label = item.get("label")
    if label is not None:
        values = _numbers(label)
        label = tuple(values.tolist()) if multi_label else int(values[0]) if values.size == 1 else int(values.argmax())
    name = case_id(item)
    patient_id = str(item.get("patient_id", name))
    points = None
    if operating_points is not None:
        points = fitting_points(item, operating_points, len(classes), multi_label)
    return Prediction(name, patient_id, prob, tuple(classes), multi_label, label, id_column(item), points)


def fitting_points(
    item: Mapping[str, Any], operating_points: Sequence[float], count: int, multi_label: bool
) -> tuple[float, ...]:
    """One operating point for each of ``count`` probabilities; a single one is that of the second of two classes.

    Raises:
        CohortError: there are more or fewer.
    """
    points = tuple(float(point) for point in operating_points)
    if len(points) == 1 and count == 2 and not multi_label:
        points = (1 - points[0], points[0])
    if len(points) != count:
        raise CohortError(
            f"{case_text(item)}: {len(points)} operating points for {count} predictions; choose them on validation "
            "data of this network"
        )
    return points


def read_frame(item: Mapping[str, Any]) -> SlideFrame:
    """The slide's frame from the image's meta data; what a foreign bag leaves out is read from the slide.

    Raises:
        CohortError: a fact is missing and there is no slide to read it from.
    """
    meta = _meta(item)
    if meta.get("scan_frame"):
        raise CohortError(f"{case_text(item)}: a scan has slices, no tiles; write its results with SliceSaver")
    path = str(meta.get("slide_path") or "") or None
    mpp, tile_size = _known(meta.get("mpp")), _known(meta.get("tile_size_level0"))
    size = _known(meta.get("level0_size"))
    if path is not None and (mpp is None or size is None) and Path(path).exists():
        from monai_mil.slides import open_slide

        with open_slide(path, mpp=None if mpp is None else float(mpp[0])) as slide:
            mpp, size = np.array([slide.mpp]), np.array(slide.size)
    if mpp is None or size is None or tile_size is None:
        facts = {"mpp": mpp, "level0_size": size, "tile_size_level0": tile_size}
        missing = ", ".join(name for name, value in facts.items() if value is None)
        raise CohortError(
            f"{case_text(item)}: its bag does not say {missing}; embed it with 'monai-mil embed', "
            "or name the slide's file in the cohort"
        )
    return SlideFrame(case_id(item), path, (int(size[0]), int(size[1])), float(mpp[0]), float(tile_size[0]))


def _known(fact: Any) -> np.ndarray | None:
    """A number or a pair of the meta data; None for what ``LoadBagd`` writes where a bag does not say: NaN or 0."""
    values = None if fact is None else _numbers(fact)
    return values if values is not None and (values > 0).all() else None


def read_scan_frame(item: Mapping[str, Any]) -> ScanFrame:
    """The scan's frame from the image's meta data.

    Raises:
        CohortError: it is not there.
    """
    text = _meta(item).get("scan_frame")
    if not text:
        raise CohortError(
            f"{case_text(item)}: its bag does not say where its slices lie; embed it with 'monai-mil embed-scans'"
        )
    return ScanFrame.from_json(str(text))


def read_depth(item: Mapping[str, Any]) -> Depth | None:
    """How the slices of the scan became the case's instances; None where each is one."""
    text = _meta(item).get("scan_depth")
    return Depth.from_json(str(text)) if text else None


def read_lungs(item: Mapping[str, Any]) -> LungField | None:
    """The lungs outside of which the network saw nothing; None where it saw all."""
    text = _meta(item).get("scan_lungs")
    return LungField.from_json(str(text)) if text else None


def read_scores(
    item: Mapping[str, Any], key: str | None, class_index: int | None
) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, scores ``[n]`` or ``[n, h, w]`` and coordinates ``[n, 2]`` of one case, padding removed.

    Args:
        item: the case.
        key: which of its tensors; None takes the first there is of ``heatmap``, ``scores``, ``instance_scores`` (one
            row a class) and ``attention`` (one row a head, averaged).
        class_index: row of a tensor with one row a class; None takes the most probable class.

    Raises:
        CohortError: there are no scores, no coordinates or no such class, or the numbers differ.
    """
    key, rows, coords = read_score_rows(item, key)
    return key, rows[_row(item, len(rows), class_index, key)], coords


def read_threshold(item: Mapping[str, Any], class_index: int | None) -> float:
    """The network's own ``threshold`` of the class that :func:`read_scores` takes.

    Raises:
        CohortError: it has none.
    """
    if item.get("threshold") is None:
        raise CohortError(f"{case_text(item)}: the network gives no 'threshold'; choose \"otsu\" or a number")
    values = _numbers(item["threshold"])
    return float(values[_row(item, len(values), class_index, "threshold")])


def drawn_class(item: Mapping[str, Any], class_index: int | None) -> int:
    """The class whose scores :func:`read_scores` takes."""
    return _class(item) if class_index is None else class_index


def read_score_rows(item: Mapping[str, Any], key: str | None) -> tuple[str, np.ndarray, np.ndarray]:
    """As :func:`read_scores`, with the scores of every class: ``[rows, n]`` or ``[rows, n, h, w]``."""
    where = case_text(item)
    known = ("heatmap", "scores", "instance_scores", "attention")
    key = key or next((name for name in known if item.get(name) is not None), None)
    if key is None or item.get(key) is None or item.get("coords") is None:
        raise CohortError(
            f"{where}: no heatmap without 'coords' and one of {', '.join(known)} among its keys; "
            "ask the network for its full output"
        )
    rows = _numbers(item[key])
    rows = rows[None] if rows.ndim == 1 else rows
    if "attention" in key:
        rows = rows.mean(axis=0, keepdims=True)
    coords = _real(item, _numbers(item["coords"]))
    rows = _real(item, rows, axis=1)
    if len(coords) != rows.shape[1]:
        raise CohortError(f"{where}: {rows.shape[1]} scores for {len(coords)} coordinates")
    return key, rows, coords


def read_slices(item: Mapping[str, Any], name: str) -> np.ndarray | None:
    """One value a slice ``[..., n]``, padding removed, or None where the case has no such key."""
    given = item.get(name)
    return None if given is None else _real(item, _numbers(given), axis=-1)


def slice_order(item: Mapping[str, Any], expected: np.ndarray) -> np.ndarray:
    """Which instance of the case is each of the ``expected`` slices of its scan, int ``[m]``, from its ``coords``.

    Raises:
        CohortError: the instances are not the slices of the scan, each once.
    """
    slices = _real(item, _numbers(item["coords"]))[:, 0]
    order = np.argsort(slices, kind="stable")
    if not np.array_equal(slices[order], expected):
        raise CohortError(
            f"{case_text(item)}: its {len(slices)} instances are not the {len(expected)} slices of its scan; give the "
            "network the whole bag"
        )
    return order


def _real(item: Mapping[str, Any], values: np.ndarray, axis: int = 0) -> np.ndarray:
    """``values`` without padding; what has no padding any more stays."""
    mask = item.get("mask")
    if mask is None:
        return values
    tokens = _numbers(mask)
    real = np.count_nonzero(tokens.reshape(len(tokens), -1), axis=1) > 0
    if values.shape[axis] != len(real):
        return values
    return np.compress(real, values, axis=axis)


def _row(item: Mapping[str, Any], count: int, class_index: int | None, key: str) -> int:
    """Which of ``count`` rows, one a class, is drawn."""
    row = 0 if count == 1 else drawn_class(item, class_index)
    if not 0 <= row < count:
        raise CohortError(f"{case_text(item)}: no class {row} among the {count} rows of '{key}'")
    return row


def _class(item: Mapping[str, Any]) -> int:
    answer = _answer(item)
    return 0 if answer is None else int(answer.argmax())


def _answer(item: Mapping[str, Any]) -> np.ndarray | None:
    """Probabilities or logits of the network, ``[c]``."""
    given = item.get("pred")
    if isinstance(given, Mapping):
        given = given["prob"] if "prob" in given else given["logits"]
    return None if given is None else _numbers(given)


def _meta(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**getattr(item.get("image"), "meta", {}), **{name: item[name] for name in _FRAME if name in item}}


def _numbers(values: Any) -> np.ndarray:
    return np.atleast_1d(as_array(values))


def _probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    if multi_label or logits.shape == (1,):
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
