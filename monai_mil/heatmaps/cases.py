"""What an engine knows of one case, read from its decollated batch and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps.heatmap import SlideFrame, as_array

_FRAME = ("level0_size", "mpp", "tile_size_level0")


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's answer for one slide.

    Attributes:
        slide_id: the slide.
        patient_id: whose it is; the slide's id where the cohort does not say.
        prob: probability of every class, float64 ``[c]``.
        classes: their names.
        multi_label: classes do not exclude each other.
        label: class index, or one value for every class (NaN: unknown), or None.
    """

    slide_id: str
    patient_id: str
    prob: np.ndarray
    classes: tuple[str, ...]
    multi_label: bool
    label: int | tuple[float, ...] | None

    @property
    def index(self) -> int:
        """The most probable class."""
        return int(np.argmax(self.prob))

    @property
    def text(self) -> str:
        """The answer in words: the class, or all classes of at least 0.5 joined by ``;``."""
        if not self.multi_label:
            return self.classes[self.index]
        return ";".join(name for name, prob in zip(self.classes, self.prob, strict=True) if prob >= 0.5)

    @property
    def label_text(self) -> str:
        """The label in the words of ``text``; empty where it is not known."""
        if isinstance(self.label, tuple):
            return ";".join(name for name, value in zip(self.classes, self.label, strict=True) if value >= 0.5)
        return self.classes[self.label] if self.label is not None and self.label >= 0 else ""

    def row(self) -> dict[str, str]:
        """The row of ``predictions.csv``."""
        row = {"slide_id": self.slide_id, "patient_id": self.patient_id, "label": self.label_text, "pred": self.text}
        row |= {f"prob_{name}": f"{prob:.6g}" for name, prob in zip(self.classes, self.prob, strict=True)}
        if self.multi_label:
            known = self.label if isinstance(self.label, tuple) else (np.nan,) * len(self.classes)
            row |= {
                f"label_{name}": "" if np.isnan(value) else f"{value:g}"
                for name, value in zip(self.classes, known, strict=True)
            }
        return row

    def attributes(self) -> dict[str, Any]:
        """What a heatmap keeps of it, for titles."""
        return {
            "prediction": self.text or "none",
            "probability": round(float(self.prob.max()), 6),
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
    """The slide's name, fit to be a file's name.

    Raises:
        CohortError: there is none, or it is no plain file name.
    """
    slide_id = item.get("slide_id", _meta(item).get("slide_id"))
    if slide_id is None:
        raise CohortError("a case of the engine has no 'slide_id', neither as a key nor in its image's meta data")
    slide_id = str(slide_id)
    if Path(slide_id).name != slide_id:
        raise CohortError(f"slide_id '{slide_id}' cannot name a file; use a name without '/'")
    return slide_id


def read_prediction(item: Mapping[str, Any], classes: Sequence[str], multi_label: bool) -> Prediction:
    """The prediction of one case.

    ``pred`` is ``[c]`` probabilities, or the network's output dict, whose ``prob`` or ``logits`` is taken. One single
    probability with two classes is that of the second.

    Raises:
        CohortError: ``pred`` fits neither the classes nor [0, 1].
    """
    slide_id = case_id(item)
    given = item["pred"]
    if isinstance(given, Mapping):
        logits = None if "prob" in given else _numbers(given["logits"])
        prob = _numbers(given["prob"]) if logits is None else _probabilities(logits, multi_label)
    else:
        prob = _numbers(given)
    if prob.shape == (1,) and len(classes) == 2 and not multi_label:
        prob = np.array([1 - prob[0], prob[0]])
    if prob.shape != (len(classes),):
        raise CohortError(f"slide '{slide_id}': {prob.size} predictions for the {len(classes)} classes {list(classes)}")
    if not ((prob >= -1e-6) & (prob <= 1 + 1e-6)).all():
        raise CohortError(f"slide '{slide_id}': predictions {prob.tolist()} are no probabilities; add Activationsd")
    label = item.get("label")
    if label is not None:
        values = _numbers(label)
        label = tuple(values.tolist()) if multi_label else int(values[0]) if values.size == 1 else int(values.argmax())
    return Prediction(slide_id, str(item.get("patient_id", slide_id)), prob, tuple(classes), multi_label, label)


def read_frame(item: Mapping[str, Any]) -> SlideFrame:
    """The slide's frame from the image's meta data; what a foreign bag leaves out is read from the slide.

    Raises:
        CohortError: a fact is missing and there is no slide to read it from.
    """
    slide_id = case_id(item)
    meta = _meta(item)
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
            f"slide '{slide_id}': its bag does not say {missing}; embed it with 'monai-mil embed', "
            "or name the slide's file in the cohort"
        )
    return SlideFrame(slide_id, path, (int(size[0]), int(size[1])), float(mpp[0]), float(tile_size[0]))


def _known(fact: Any) -> np.ndarray | None:
    """A number or a pair of the meta data; None for what ``LoadBagd`` writes where a bag does not say: NaN or 0."""
    values = None if fact is None else _numbers(fact)
    return values if values is not None and (values > 0).all() else None


def read_scores(
    item: Mapping[str, Any], key: str | None, class_index: int | None
) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, scores ``[n]`` or ``[n, h, w]`` and coordinates ``[n, 2]`` of one case, padding removed.

    Args:
        item: the case.
        key: which of its tensors; None takes the first there is of ``scores``, ``heatmap``, ``instance_scores`` (one
            row a class) and ``attention`` (one row a head, averaged).
        class_index: row of a tensor with one row a class; None takes the most probable class.

    Raises:
        CohortError: there are no scores, no coordinates or no such class, or the numbers differ.
    """
    slide_id = case_id(item)
    known = ("scores", "heatmap", "instance_scores", "attention")
    key = key or next((name for name in known if item.get(name) is not None), None)
    if key is None or item.get(key) is None or item.get("coords") is None:
        raise CohortError(
            f"slide '{slide_id}': no heatmap without 'coords' and one of {', '.join(known)} among its keys; "
            "ask the network for its full output"
        )
    rows, coords = _numbers(item[key]), _numbers(item["coords"])
    rows = rows[None] if rows.ndim == 1 else rows
    if "attention" in key:
        scores = rows.mean(axis=0)
    else:
        row = 0 if len(rows) == 1 else _class(item) if class_index is None else class_index
        if not 0 <= row < len(rows):
            raise CohortError(f"slide '{slide_id}': no class {row} among the {len(rows)} rows of '{key}'")
        scores = rows[row]
    mask = item.get("mask")
    if mask is not None:
        real = _numbers(mask).astype(bool)
        scores = scores[real] if len(scores) == len(real) else scores
        coords = coords[real] if len(coords) == len(real) else coords
    if len(coords) != len(scores):
        raise CohortError(f"slide '{slide_id}': {len(scores)} scores for {len(coords)} coordinates")
    return key, scores, coords


def _class(item: Mapping[str, Any]) -> int:
    given = item.get("pred")
    if isinstance(given, Mapping):
        given = given["prob"] if "prob" in given else given["logits"]
    return 0 if given is None else int(_numbers(given).argmax())


def _meta(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**getattr(item.get("image"), "meta", {}), **{name: item[name] for name in _FRAME if name in item}}


def _numbers(values: Any) -> np.ndarray:
    return np.atleast_1d(as_array(values))


def _probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    if multi_label or logits.shape == (1,):
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
