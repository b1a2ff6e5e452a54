"""The classic sets MUSK1, MUSK2, FOX, TIGER and ELEPHANT under a protocol that does not choose on the test fold.

Stratified tenfold cross-validation, five times, standardised on the training folds, 40 epochs of Adam (learning rate
5e-4, weight decay 1e-5) with one bag a step, the network of the last epoch. Every method is 64 wide and has its own
paper's dropout; nothing was tuned. TransMIL has 4 heads and 8 landmarks, about a bag's length.

The published figures take the best epoch on the test fold, and some come from features that hold the instances'
labels. What the best epoch would give stands beside each figure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from experiments.classic_protocol import FOLDS, Fold, folds
from experiments.side_by_side import EPOCHS, Method, Trained, WholeABMIL, train
from monai_mil.datasets import CLASSIC_SETS, ClassicBags, read_classic
from monai_mil.files import replacing
from monai_mil.losses import AnchorDivergence, BagCrossEntropy, MaxInstance, MILLoss
from monai_mil.losses.anchor_divergence import Target
from monai_mil.networks import ASMIL, DSMIL, MaxPooling, MeanPooling, TransMIL

WIDTH = 64
REPETITIONS = 5
_CELL = (
    "mean ± standard deviation over repetitions (95 % interval over the bags) [if every fold took its best test epoch: "
    "optimistic, for comparison with the literature only]"
)


def anchored(method: Method, target: Target = "nsf", beta: float = 1.0) -> Method:
    """With the paper's "+Anchor+NSF" or another anchor."""
    terms = {"method": method.loss, "anchor": AnchorDivergence(target)}
    return replace(method, loss=MILLoss(terms, {"anchor": beta}), anchored=True)


_BAG = BagCrossEntropy()
_ABMIL = partial(WholeABMIL, num_classes=2, hidden_dim=WIDTH, attention_dim=WIDTH)
_DSMIL = MILLoss({"bag": _BAG, "instance": MaxInstance(_BAG)}, {"bag": 0.5, "instance": 0.5})
_TRANSMIL = partial(TransMIL, num_classes=2, hidden_dim=WIDTH, heads=4, landmarks=8)
_ATTENTION = {
    "ABMIL": Method(partial(_ABMIL, gated=False), _BAG),
    "gated ABMIL": Method(partial(_ABMIL, gated=True), _BAG),
    "DSMIL": Method(partial(DSMIL, num_classes=2, query_dim=WIDTH), _DSMIL),
    "ASMIL without its anchor": Method(partial(ASMIL, num_classes=2, hidden_dim=WIDTH), _BAG),
    "TransMIL": Method(_TRANSMIL, _BAG, squared=True),
}
METHODS = {
    "mean pooling": Method(partial(MeanPooling, num_classes=2, hidden_dim=WIDTH), _BAG),
    "max pooling": Method(partial(MaxPooling, num_classes=2, hidden_dim=WIDTH), _BAG),
}
for _name, _method in _ATTENTION.items():
    METHODS[_name] = _method
    METHODS["ASMIL" if _name.startswith("ASMIL") else f"{_name} + anchor"] = anchored(_method)
COMPARISONS = (("ASMIL", "gated ABMIL"), ("ASMIL", "ASMIL without its anchor"))


@dataclass(frozen=True, eq=False)
class Result:
    """One method on one set.

    Attributes:
        last: share of the repetitions in which a bag was told right by the last epoch's network, ``[bags]``.
        accuracies: of every repetition, over all its test folds, which together are all bags.
        best: mean accuracy if every fold took the epoch that is best on its own test bags.
    """

    last: np.ndarray
    accuracies: np.ndarray
    best: float


def run(folder: Path, data: Path) -> str:
    """Train every method on every set; a Markdown table of accuracies."""
    return compare(folder, data, METHODS, COMPARISONS)


def compare(
    folder: Path,
    data: Path,
    methods: Mapping[str, Method],
    comparisons: Sequence[tuple[str, str]],
    repetitions: int = REPETITIONS,
) -> str:
    """The same for any methods and pairs of them, and for other numbers of repetitions."""
    sets = [read_classic(data / f"{name}.npz") for name in CLASSIC_SETS]
    for name, method in methods.items():
        for alike in _alike(sets):
            _train_missing(folder, name, method, alike, repetitions)
    results = {name: [_read(folder, name, bags, repetitions) for bags in sets] for name in methods}
    return "\n".join([*_table(results, repetitions), "", *(_comparison(results, pair) for pair in comparisons)])


def _file(folder: Path, method: str, bags: ClassicBags, repetition: int) -> Path:
    return folder / bags.name / method.replace(" ", "_") / f"{repetition}.npz"


def _alike(sets: Sequence[ClassicBags]) -> list[list[ClassicBags]]:
    """Sets of the same width, whose networks can be trained in one go."""
    widths = {bags.features.shape[1]: None for bags in sets}
    return [[bags for bags in sets if bags.features.shape[1] == width] for width in widths]


def _train_missing(folder: Path, name: str, method: Method, sets: Sequence[ClassicBags], repetitions: int) -> None:
    """Train the repetitions that have no file yet, all together."""
    paths = {(bags, index): _file(folder, name, bags, index) for bags in sets for index in range(repetitions)}
    missing = {path: list(folds(bags, index)) for (bags, index), path in paths.items() if not path.exists()}
    every = [fold for ten in missing.values() for fold in ten]
    trained = train(method, every, EPOCHS, _progress(name, every)) if every else {}
    for path, ten in missing.items():
        _write(path, ten, trained)


def _write(path: Path, ten: Sequence[Fold], trained: Mapping[Fold, Trained]) -> None:
    whole, of_fold = np.zeros((EPOCHS, len(ten[0].bags)), dtype=bool), np.zeros(len(ten[0].bags), dtype=np.int64)
    for index, fold in enumerate(ten):
        whole[:, fold.test] = trained[fold].right
        of_fold[fold.test] = index
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, right=whole, fold=of_fold)


def _progress(name: str, same: Sequence[Fold]) -> Callable[[int], None]:
    sets = ", ".join(dict.fromkeys(fold.bags.name for fold in same))
    started, cpu = time.monotonic(), time.process_time()

    def on_epoch(epoch: int) -> None:
        if epoch % 10 == 0:
            spent = f"{time.monotonic() - started:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
            print(f"    {name}, {len(same)} folds of {sets}: epoch {epoch}, {spent}", file=sys.stderr, flush=True)

    return on_epoch


def _read(folder: Path, name: str, bags: ClassicBags, repetitions: int) -> Result:
    lasts, bests = [], []
    for repetition in range(repetitions):
        with np.load(_file(folder, name, bags, repetition)) as stored:
            right, of_fold = stored["right"], stored["fold"]
        lasts.append(right[-1])
        bests.append(sum(right[:, of_fold == fold].sum(axis=1).max() for fold in range(FOLDS)) / len(bags))
    return Result(np.mean(lasts, axis=0), np.mean(lasts, axis=1), float(np.mean(bests)))


def _table(results: Mapping[str, Sequence[Result]], repetitions: int) -> list[str]:
    lines = [f"| method | {' | '.join(name.upper() for name in CLASSIC_SETS)} | mean of the five |"]
    lines.append("|---|" + "---|" * (len(CLASSIC_SETS) + 1))
    for name, row in results.items():
        cells = [_cell(result) for result in row]
        mean, margin = _mean([result.last for result in row])
        best = np.mean([result.best for result in row])
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:.3f} ({_range(mean, margin)}) [{best:.3f}] |")
    return [*lines, "", f"Accuracy of the last epoch, {FOLDS} folds, {repetitions} repetitions: {_CELL}."]


def _cell(result: Result) -> str:
    mean, margin = _mean([result.last])
    spread = result.accuracies.std(ddof=1) if len(result.accuracies) > 1 else np.nan
    return f"{mean:.3f} ± {spread:.3f} ({_range(mean, margin)}) [{result.best:.3f}]"


def _range(mean: float, margin: float) -> str:
    return f"{max(0.0, mean - margin):.3f} to {min(1.0, mean + margin):.3f}"


def _comparison(results: Mapping[str, Sequence[Result]], pair: tuple[str, str]) -> str:
    one, other = (results[name] for name in pair)
    mean, margin = _mean([a.last - b.last for a, b in zip(one, other, strict=True)])
    span = f"{mean - margin:+.3f} to {mean + margin:+.3f}"
    return f"{pair[0]} less {pair[1]}, mean of the five: {mean:+.3f} ({span}, paired by bag)."


def _mean(sets: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean over sets of the mean over their bags, and half of its 95 % interval."""
    variance = sum(values.var(ddof=1) / len(values) for values in sets) / len(sets) ** 2
    return float(np.mean([values.mean() for values in sets])), float(1.96 * np.sqrt(variance))
