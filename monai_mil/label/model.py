"""A bundle's network as a server holds it: loaded once, answering image by image, and anew when its weights change."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_mil.bags import BagFile
from monai_mil.cohorts import Cohort, CohortSlide
from monai_mil.errors import MonaiMILError, SettingsError
from monai_mil.files import make_folder
from monai_mil.heatmaps import Heatmap
from monai_mil.identity import change_stamp
from monai_mil.label.heat import HEAT_CLASSES
from monai_mil.metrics import jensen_shannon
from monai_mil.model_card import ModelCard, weights_digest
from monai_mil.names import file_stem
from monai_mil.runs import Bundle, embed_as, from_bags, import_monai_lightly, predict_run
from monai_mil.savers import Case, Prediction, ScanLabelMapd, read_items, read_prediction

logger = logging.getLogger(__name__)

ANCHOR = "anchor.pt"
"""The anchor of a training, beside the weights that it was trained with."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of one slide or scan.

    Attributes:
        model: the bundle's name.
        fingerprint: digest of the weights that gave it.
        case: the network's whole answer.
        item: the case as its engine left it, which label maps are made of.
        prediction: the classes' probabilities and what is called.
        heatmap: of a slide: where the network looked, or found something; None of a scan.
        note: what whoever reads the answer must know of the model, or None.
    """

    model: str
    fingerprint: str
    case: Case
    item: Mapping[str, Any]
    prediction: Prediction
    heatmap: Heatmap | None
    note: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """The answer as plain JSON, for a client."""
        points, classes = self.prediction.operating_points, self.prediction.classes
        said = {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "prediction": self.prediction.text or "none",
            "probabilities": dict(zip(classes, map(float, self.prediction.prob), strict=True)),
        }
        said |= {} if points is None else {"operating_points": dict(zip(classes, points, strict=True))}
        return said | ({} if self.note is None else {"note": self.note})


class ServedModel:
    """A bundle that answers slides or scans, one at a time; any thread may ask.

    Features are kept in a folder, which models with the same encoder and settings share, so that only the first answer
    about an image waits for its encoder. New weights are served as soon as they are whole and fit their card; until
    then, and where they are damaged, the answers are those of the last ones.

    Args:
        bundle: whose weights lie in ``models/model.pt``.
        folder: where features are kept.
        settings: further keys of the bundle's inference configs, such as ``mpp`` or ``device``.
        weights: other weights than the bundle's own.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.label import ServedModel
        >>> from monai_mil.runs import find_bundle
        >>> from monai_mil.slides import write_pyramid
        >>> write_pyramid(folder / "S-1.tif", np.full((512, 512, 3), (180, 60, 140), np.uint8), mpp=0.5)
        >>> model = ServedModel(find_bundle("pathology_asmil"), folder / "features")
        >>> answer = model.answer("S-1", folder / "S-1.tif")
        >>> sorted(answer.facts["probabilities"]), answer.heatmap.coords.tolist()
        (['normal', 'tumor'], [[0, 0], [256, 0], [0, 256], [256, 256]])
    """

    def __init__(
        self, bundle: Bundle, folder: Path, *, settings: Mapping[str, Any] | None = None, weights: Path | None = None
    ) -> None:
        self.bundle = bundle
        self.folder = folder
        self.settings = dict(settings or {})
        self.weights = bundle.weights if weights is None else weights
        self._lock = threading.RLock()
        self._loading = threading.Lock()  # not the other one: whoever asks what the model is waits for no slide
        self._loaded: _Loaded | None = None
        self._tried = ""
        self._embedded: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The bundle's."""
        return self.bundle.name

    @property
    def card(self) -> ModelCard:
        """What the served weights know of themselves.

        Raises:
            SettingsError: there are no weights, or they cannot be read, and none were read before.
        """
        return self._current().card

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the network's outputs."""
        return self._current().classes

    @property
    def fingerprint(self) -> str:
        """Digest of the weights that are served."""
        return self.card.weights or ""

    @property
    def has_dropout(self) -> bool:
        """Whether the network draws anything at random while it is trained."""
        return _has_dropout(self._current().network)

    @property
    def has_anchor(self) -> bool:
        """Whether the anchor of the training that made the served weights lies beside them."""
        return self._current().anchor is not None

    def has_features(self, name: str) -> bool:
        """Whether features of an image of this name are kept, be they of its present content or not."""
        return self._bag(name).is_file()

    def embed(self, name: str, path: Path, series_uid: str | None = None) -> Path:
        """Keep the features of an image; returns its bag.

        Raises:
            MonaiMILError: it cannot be read, or has no tissue; the message names it.
        """
        with self._lock:
            stamp = _stamp(path)
            bag = self._bag(name)
            if stamp and self._embedded.get(name) == stamp and bag.is_file():
                return bag
            loaded = self._current()
            case = CohortSlide(name, name, path, series_uid=series_uid)
            id_column = "scan_id" if self.bundle.reads == "scans" else "slide_id"
            cohort = Cohort(self.bags / "server.csv", (case,), id_column=id_column)
            report = embed_as(
                self.bundle,
                self._transform,
                cohort,
                self.bags,
                device=loaded.device,
                overwrite=True,
                progress=False,
            )
            (result,) = report.results
            if result.error is not None:
                raise SettingsError(result.error)
            self._embedded[name] = stamp
            return bag

    def answer(self, name: str, path: Path, series_uid: str | None = None) -> Answer:
        """The model's answer about one image.

        Raises:
            MonaiMILError: it cannot be read, or the model cannot answer it; the message names it.
        """
        with self._lock:
            bag = self.embed(name, path, series_uid)
            loaded = self._current()
            item = loaded.run(self._item(name, bag))
            case = Case.of(item)
            classes, multi_label = loaded.classes, loaded.multi_label
            prediction = read_prediction(case, classes, multi_label, loaded.operating_points)
            heatmap = None if loaded.heatmap is None else loaded.heatmap(case)
            return Answer(self.name, loaded.card.weights or "", case, item, prediction, heatmap, loaded.card.note)

    def answer_once(self, name: str, path: Path, series_uid: str | None = None) -> Answer:
        """As :meth:`answer`, of an image whose features are of no use later."""
        with self._lock:
            try:
                return self.answer(name, path, series_uid)
            finally:
                self._embedded.pop(name, None)
                folders = [self.bags, *self.bags.glob("level_*")]
                for bag in (folder / f"{file_stem(name)}.h5" for folder in folders):
                    bag.unlink(missing_ok=True)

    def label_map(self, answer: Answer) -> tuple[Any, dict[str, Any]]:
        """A scan's answer as labels on the source's own grid, and what a client is told of it.

        Returns:
            A ``MetaTensor`` ``[1, i, j, k]``, uint8: 0, 1 of medium and 2 of high scores; and plain JSON, see
            :class:`monai_mil.savers.ScanLabelMapd`.

        Raises:
            CohortError: the answer has no scores of slices.
        """
        with self._lock:
            made = self._current().label_map(answer.item)
            return made["pred"], {**answer.facts, **made["result"]}

    def drawn_probabilities(self, name: str, path: Path, series_uid: str | None = None, *, passes: int) -> np.ndarray:
        """Probabilities of every class in passes with the network's dropout on, float64 ``[passes, c]``."""
        with self._lock:
            bag = self.embed(name, path, series_uid)
            loaded = self._current()
            found = [
                Case.of(loaded.run(self._item(name, bag), mode=_training)).probabilities(loaded.multi_label)
                for _ in range(passes)
            ]
            return np.array([_both(prob, loaded) for prob in found])

    def anchor_disagreement(self, name: str, path: Path, series_uid: str | None = None) -> float:
        """How much the anchor's attention differs from the network's: their Jensen-Shannon divergence, in nats.

        Raises:
            SettingsError: there is no anchor, see :attr:`has_anchor`.
        """
        with self._lock:
            bag = self.embed(name, path, series_uid)
            loaded = self._current()
            if loaded.anchor is None:
                raise SettingsError(
                    f"model '{self.name}' has no anchor beside its weights: train it here, with the anchor, first"
                )
            case = Case.of(loaded.run(self._item(name, bag), inferer=loaded.anchor))
            anchor, online = case.values("anchor_logits"), case.values("attention_logits")
            assert anchor is not None
            assert online is not None
            pairs = zip(np.atleast_2d(anchor), np.atleast_2d(online), strict=True)
            return float(np.mean([jensen_shannon(_softmax(first), _softmax(second)) for first, second in pairs]))

    def embedding(self, name: str, path: Path, series_uid: str | None = None) -> np.ndarray:
        """Mean of an image's features over all its instances and tokens, float64 ``[d]``; no network takes part."""
        with BagFile(self.embed(name, path, series_uid)) as bag:
            features = np.asarray(bag.features(), np.float64)
        return features.reshape(*features.shape[:2], -1).mean(axis=(0, 2))

    @property
    def bags(self) -> Path:
        """The folder of the features that this model reads."""
        transform = self._transform
        encoder = transform.encoder
        settings = repr((encoder.name, encoder.digest, encoder.grid, transform.settings))
        return self.folder / f"{encoder.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    @property
    def _transform(self) -> Any:
        return self._current().raw

    def _bag(self, name: str) -> Path:
        level = self._current().coarsest
        folder = self.bags if level is None else self.bags / f"level_{level}"
        return folder / f"{file_stem(name)}.h5"

    def _item(self, name: str, bag: Path) -> dict[str, Any]:
        column = "scan_id" if self.bundle.reads == "scans" else "slide_id"
        return {"image": str(bag), column: name}

    def _current(self) -> _Loaded:
        """The network with the newest whole weights."""
        with self._loading:
            stamp = _stamp(self.weights, self.weights.with_suffix(".json"), self.weights.with_name(ANCHOR))
            if stamp != self._tried or self._loaded is None:
                self._tried = stamp
                try:
                    self._loaded = _Loaded(self)
                except MonaiMILError as error:
                    if self._loaded is None:
                        raise
                    logger.warning("the weights before are served on: %s", error)
            return self._loaded


class _Loaded:
    """The parts of a bundle's configs that answer, with one set of weights in them."""

    def __init__(self, model: ServedModel) -> None:
        import_monai_lightly()
        scratch = model.folder / ".runs" / model.name
        make_folder(scratch)
        self.reads = model.bundle.reads
        raw = predict_run(
            model.bundle, [scratch], scratch, model=model.weights, settings={**model.settings, "handlers": []}
        )
        self._raw = raw
        nameless = [{"image": "", "scan_id" if self.reads == "scans" else "slide_id": ""}]
        of_bags = from_bags(raw, scratch, datalist=nameless, cohort_file=None)
        self._workflow = of_bags.workflow()
        self._workflow.initialize()
        self.card: ModelCard = self._content("trained")
        self.network: nn.Module = self._content("network")
        _load(self.network, self.card)
        self.evaluator = self._content("evaluator")
        self.classes = tuple(map(str, self._content("class_names")))
        self.multi_label = bool(self._optional("multi_label"))
        self.operating_points = self._optional("operating_points")
        self.device = str(self._content("device"))
        levels = self._optional("levels") if self._has("coarsest_dir") else None
        self.coarsest = None if levels is None else int(levels) - 1
        saver = self._optional("heatmap_saver")
        self.heatmap: Callable[[Case], Heatmap] | None = None if saver is None else saver.heatmap
        self._slices = self._optional("slice_saver")
        self._items: list[Any] = []
        self._collect()

    def run(
        self, item: Mapping[str, Any], *, mode: Callable[[nn.Module], Any] | None = None, inferer: Any = None
    ) -> dict[str, Any]:
        """The item of a bag with the network's answer in it.

        Raises:
            MonaiMILError: the bag cannot be loaded.
        """
        dataset = self._content("dataset")
        dataset.data = [dict(item)]
        self._items.clear()
        with _replaced(self.evaluator, mode=mode, inferer=inferer):
            self.evaluator.run()
        if dataset.failures:
            raise SettingsError(dataset.failures[0].message)
        return self._items[0]

    @cached_property
    def raw(self) -> Any:
        """The transform that embeds, with the encoder in it."""
        workflow = self._raw.workflow()
        workflow.initialize()
        return workflow.parser.get_parsed_content("preprocessing").transforms[0]

    @cached_property
    def label_map(self) -> Any:
        """The transform that makes label maps of a scan's answer."""
        return ScanLabelMapd(
            "pred",
            self.classes,
            levels=len(HEAT_CLASSES),
            multi_label=self.multi_label,
            key=self._slices.key,
            threshold=self._optional("threshold") or "otsu",
            min_threshold=self._optional("min_threshold") or 0.0,
            operating_points=self.operating_points,
        )

    @cached_property
    def anchor(self) -> Any:
        """The inferer that gives the anchor's attention too; None where no anchor of these weights is there."""
        from monai_mil.training import Anchor, AnchorInferer, read_anchor

        assert self.card.path is not None
        try:
            network = read_anchor(self.network, self.card.path)
        except SettingsError as error:
            logger.warning("%s", error)
            return None
        if network is None:
            return None
        anchor = Anchor(self.network)
        anchor.network = network.to(self.device)
        return AnchorInferer(anchor)

    def _collect(self) -> None:
        from ignite.engine import Events

        def collect(engine: Any) -> None:
            self._items.extend(read_items(engine))

        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, collect)

    def _content(self, name: str) -> Any:
        return self._workflow.parser.get_parsed_content(name)

    def _has(self, name: str) -> bool:
        config: Any = self._workflow.parser.config
        return name in config

    def _optional(self, name: str) -> Any:
        return self._content(name) if self._has(name) else None


def _load(network: nn.Module, card: ModelCard) -> None:
    """Give a network the weights of a card.

    Raises:
        SettingsError: they were replaced since the card was read; the next request takes the new ones.
    """
    assert card.path is not None
    state = torch.load(card.path, map_location="cpu", weights_only=True)
    if weights_digest(state) != card.weights:
        raise SettingsError(f"model '{card.path}' was replaced while it was read; ask again")
    network.load_state_dict(state)


@contextmanager
def _replaced(engine: Any, **parts: Any) -> Iterator[None]:
    """An engine with other parts for a while; those that are None stay."""
    before = {name: getattr(engine, name) for name, part in parts.items() if part is not None}
    for name in before:
        setattr(engine, name, parts[name])
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(engine, name, part)


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """A network with its dropout on, without gradients."""
    was_training = network.training
    network.train()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def _has_dropout(network: nn.Module) -> bool:
    return any(
        isinstance(rate, float) and rate > 0
        for module in network.modules()
        for rate in (getattr(module, "p", None), getattr(module, "dropout", None), getattr(module, "drop", None))
    )


def _both(prob: np.ndarray, loaded: _Loaded) -> np.ndarray:
    """The probabilities of both classes where the network gives that of the second alone."""
    alone = prob.shape == (1,) and len(loaded.classes) == 2 and not loaded.multi_label
    return np.array([1 - prob[0], prob[0]]) if alone else prob


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(scores - scores.max())
    return weights / weights.sum()


def _stamp(*files: Path) -> str:
    """What stays the same as long as nobody touches these files; empty where none is there, or of a folder."""
    there = [path for path in files if path.is_file()]
    try:
        return change_stamp(there) if there else ""
    except OSError:
        return ""
