"""Why no strategy of ``active_learning`` is surely better than random: looked into afterwards, on the same 20 seeds.

Three questions, all with the experiment's own bags and networks:

- *Noise.* With the labels fixed (the first 32 of the random order), how much does test AUROC differ between five
  networks that differ in their seed only, and how much between seeds of the experiment?
- *Doubt.* Among the unlabelled bags at 8, 24 and 48 labels chosen at random: does entropy find the bags that the
  network gets wrong (AUROC of entropy for wrong answers), and is it higher for positive bags of the rare lesion?
- *What there is to gain.* Test AUROC by kind of lesion at 64 labels, and with all 240.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from experiments.active_learning import _KINDS, _POOL, _TEST, _WIDTH, SEEDS, _answers, _bags, _trained
from monai_mil.label import entropy
from monai_mil.metrics import auroc

_AT = (8, 24, 48)


def run(folder: Path, seeds: int = SEEDS) -> str:
    """The table; every seed's numbers go to ``seed_N.json``, which is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(seeds):
        kept = folder / f"seed_{seed}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(_one_seed(seed)))
        found.append(json.loads(kept.read_text()))
    rows = ["| what | mean of the seeds | standard deviation |", "|---|---|---|"]
    for name in found[0]:
        values = np.array([each[name] for each in found], float)
        rows.append(f"| {name} | {np.nanmean(values):.3f} | {np.nanstd(values, ddof=1):.3f} |")
    return "\n".join(rows)


def _one_seed(seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(7, _WIDTH, generator=generator)
    pool, labels, kinds = _with_kinds(_POOL, prototypes, generator)
    test, truth, test_kinds = _with_kinds(_TEST, prototypes, generator)
    order = torch.randperm(_POOL, generator=generator).tolist()
    repeats = [_auroc(_trained(pool[order[:32]], labels[order[:32]], 7000 + each), test, truth) for each in range(5)]
    said = {
        "test AUROC with 32 labels": repeats[0],
        "its standard deviation between networks of the same labels": float(np.std(repeats, ddof=1)),
    }
    for count in _AT:
        said |= _doubt(count, pool, labels, kinds, order, seed)
    for count in (64, _POOL):
        network = _trained(pool[order[:count]], labels[order[:count]], seed)
        said |= {
            f"{count} labels: test AUROC, lesions of {100 * share:.0f} %": _auroc(
                network, *_of_kind(test, truth, test_kinds, kind)
            )
            for kind, share in enumerate(_KINDS)
        }
    return said


def _with_kinds(
    count: int, prototypes: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """The experiment's bags, and of each the kind of lesion that a positive one has, from the same draws."""
    state = generator.get_state()
    bags, labels = _bags(count, prototypes, generator)
    after = generator.get_state()
    generator.set_state(state)
    torch.randint(0, 4, (count, bags.shape[2]), generator=generator)
    torch.randn(count, bags.shape[2], _WIDTH, generator=generator)
    kinds = torch.multinomial(torch.tensor(_KINDS), count, replacement=True, generator=generator).numpy()
    assert torch.equal(generator.get_state(), after)
    return bags, labels, kinds


def _doubt(
    count: int, pool: torch.Tensor, labels: torch.Tensor, kinds: np.ndarray, order: list[int], seed: int
) -> dict[str, float]:
    network = _trained(pool[order[:count]], labels[order[:count]], seed)
    left = np.array(order[count:])
    answers, truth = _answers(network, pool[left]), labels[left].numpy()
    doubt = np.array([entropy(row) for row in answers])
    wrong = (answers[:, 1] > 0.5) != truth
    seen = {int(kinds[index]) for index in order[:count] if labels[index] == 1}
    positive = truth == 1
    rare, unseen = positive & (kinds[left] == 2), positive & ~np.isin(kinds[left], list(seen))
    return {
        f"{count} labels: AUROC of entropy for a wrong answer": _rank(doubt, wrong),
        f"{count} labels: AUROC of entropy for the rare lesion among positive bags": _rank(
            doubt[positive], rare[positive]
        ),
        f"{count} labels: positive bags whose lesion no label has shown": float(unseen.sum() / positive.sum()),
        f"{count} labels: share of answers that are wrong": float(wrong.mean()),
    }


def _rank(values: np.ndarray, is_one: np.ndarray) -> float:
    return float(auroc(values, is_one.astype(int))) if 0 < is_one.sum() < len(is_one) else float("nan")


def _of_kind(
    bags: torch.Tensor, truth: torch.Tensor, kinds: np.ndarray, kind: int
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = (truth == 0) | torch.from_numpy(kinds == kind)
    return bags[chosen], truth[chosen]


def _auroc(network, bags: torch.Tensor, truth: torch.Tensor) -> float:
    return float(auroc(_answers(network, bags)[:, 1], truth.numpy()))
