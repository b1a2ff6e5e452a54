"""Many small networks of one design, each on its own fold and its own bag, trained in the same vectorised step.

Bags of the classic sets are so small that a step of one network is mostly waiting for Python. Parameters of all
networks are stacked here and a step is one ``vmap`` over them; what a network learns is what it would learn alone,
bag by bag with ``torch.optim.Adam`` and ``monai_mil.training.Anchor``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.classic_protocol import Fold
from monai_mil.networks import ABMIL
from monai_mil.networks.contract import MILNetwork

EPOCHS = 40
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 1e-5
MOMENTUM = 0.999

Tensors = dict[str, Tensor]


class WholeABMIL(ABMIL):
    """ABMIL in plain operations: its own derivative, made for long bags, has no rule for ``vmap``."""

    def _pool(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._pool_whole(image, mask)


@dataclass(frozen=True)
class Method:
    """How the networks of one row of the table are made and taught.

    Attributes:
        network: makes one for a number of features.
        loss: of its output and the label.
        anchored: the loss needs the scores of an anchor.
        squared: the network lays a bag out as a square and takes no mask; bags come with their first tiles repeated.
        repetitions: of the cross-validation.
    """

    network: Callable[[int], MILNetwork]
    loss: nn.Module
    anchored: bool = False
    squared: bool = False
    repetitions: int = 5


@dataclass(frozen=True, eq=False)
class Shelf:
    """The bags of all folds, of one set or of several of equal width.

    Attributes:
        rows: instances, float32 ``[m, d]``.
        starts: first row of every bag, ``[b]``.
        lengths: of every bag, ``[b]``.
        sizes: bags of the same one can be filled up to the same length, ``[b]``.
        labels: 0 or 1, ``[b]``.
        mean: of every fold's training instances, ``[folds, d, 1]``.
        spread: likewise their standard deviation.
        train: bags of every fold.
        test: likewise.
        squared: see :class:`Method`.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    sizes: Tensor
    labels: Tensor
    mean: Tensor
    spread: Tensor
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    squared: bool

    def parts(self, bags: Tensor) -> list[tuple[Any, Tensor]]:
        """Networks whose next bags are of the same size, and these bags; those that have none (-1) are in no part."""
        sizes = torch.where(bags < 0, -1, self.sizes[bags])
        found = sizes.unique()
        if len(found) == 1:
            return [(slice(None), bags)]
        return [
            (models, bags[models]) for models in ((sizes == size).nonzero().flatten() for size in found if size >= 0)
        ]

    def take(self, models: Any, bags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A bag for each of ``k`` networks: ``image`` ``[k, 1, d, n]``, ``mask`` ``[k, 1, n]`` and label ``[k, 1]``."""
        lengths = self.lengths[bags][:, None]
        places = torch.arange(math.ceil(math.sqrt(lengths.max())) ** 2 if self.squared else max(16, int(lengths.max())))
        rows = self.rows[self.starts[bags][:, None] + places % lengths]
        image = (rows.mT - self.mean[models]) / self.spread[models]
        return image[:, None], (places < lengths)[:, None], self.labels[bags][:, None]


def shelve(folds: Sequence[Fold], squared: bool) -> Shelf:
    """Put the sets of all folds behind each other."""
    sets = list(dict.fromkeys(fold.bags for fold in folds))
    first_row = np.cumsum([0, *(len(bags.features) for bags in sets)])
    first_bag = dict(zip(sets, np.cumsum([0, *map(len, sets)]).tolist(), strict=False))
    lengths = np.concatenate([np.diff(bags.starts) for bags in sets])
    sizes = np.ceil(np.sqrt(lengths)) if squared else np.ceil(np.log(lengths.clip(min=16)) / np.log(4))
    mean, spread = zip(*(fold.statistics() for fold in folds), strict=True)
    return Shelf(
        torch.from_numpy(np.concatenate([bags.features for bags in sets])),
        torch.from_numpy(np.concatenate([bags.starts[:-1] + row for bags, row in zip(sets, first_row, strict=False)])),
        torch.from_numpy(lengths),
        torch.from_numpy(sizes.astype(np.int64)),
        torch.from_numpy(np.concatenate([bags.labels for bags in sets])),
        torch.from_numpy(np.stack(mean)).float()[:, :, None],
        torch.from_numpy(np.stack(spread)).float()[:, :, None],
        tuple(torch.from_numpy(fold.train + first_bag[fold.bags]) for fold in folds),
        tuple(torch.from_numpy(fold.test + first_bag[fold.bags]) for fold in folds),
        squared,
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """One fold's network.

    Attributes:
        right: whether it knew a test bag after an epoch, bool ``[epochs, test bags]``.
        parameters: after the last epoch.
    """

    right: np.ndarray
    parameters: Tensors


def train(
    method: Method, folds: Sequence[Fold], epochs: int = EPOCHS, tell: Callable[[int], None] = lambda epoch: None
) -> dict[Fold, Trained]:
    """Train a network for every fold, one bag a step, and test each after every epoch.

    Args:
        method: the networks.
        folds: of one set or of several of equal width.
        epochs: over the training bags.
        tell: is called with the number of every epoch that is finished.
    """
    folds = sorted(folds, key=lambda fold: len(fold.train))
    shelf = shelve(folds, method.squared)
    networks = [_seeded(method, fold) for fold in folds]
    network, parameters = networks[0], _stack(networks)
    anchor = _Scores(network.anchor_copy()) if method.anchored else None  # type: ignore[operator]
    copies = {} if anchor is None else {name: parameters[name].clone() for name in _names(anchor.network)}
    squads = [Squad(folds, size, parameters, copies) for size in sorted({len(fold.train) for fold in folds})]
    generators = [torch.Generator().manual_seed(fold.seed) for fold in folds]
    torch.manual_seed(folds[0].seed)
    losses = vmap(partial(_loss, method, _Open(network), anchor), randomness="different")
    logits = vmap(partial(_logits, method, _Open(network)))
    gradients = {name: torch.empty_like(value) for name, value in parameters.items()}
    tests = _queue(shelf.test)
    right = torch.zeros(len(folds), epochs, len(tests), dtype=torch.bool)
    for epoch in range(epochs):
        network.train()
        orders = [bags[torch.randperm(len(bags), generator=g)] for bags, g in zip(shelf.train, generators, strict=True)]
        for step, bags in enumerate(_queue(orders)):
            _differentiate(losses, shelf, bags, parameters, copies, gradients)
            for squad in squads:
                if step < squad.size:
                    squad.step(gradients)
        network.eval()
        for place, bags in enumerate(tests):
            right[:, epoch, place] = _answers(logits, shelf, bags, parameters) == shelf.labels[bags]
        tell(epoch + 1)
    return {
        fold: Trained(
            right[index, :, : len(fold.test)].numpy(), {name: value[index] for name, value in parameters.items()}
        )
        for index, fold in enumerate(folds)
    }


class Squad:
    """Networks with equally many training bags, so that they are at the same step of Adam.

    Args:
        folds: of all networks, those of a squad side by side.
        size: training bags of this squad.
        parameters: of all networks, changed in place.
        copies: likewise of their anchors.
    """

    def __init__(self, folds: Sequence[Fold], size: int, parameters: Tensors, copies: Tensors) -> None:
        members = [index for index, fold in enumerate(folds) if len(fold.train) == size]
        self.size = size
        self.models = slice(members[0], members[-1] + 1)
        self.parameters = {name: value[self.models] for name, value in parameters.items()}
        self.copies = {name: value[self.models] for name, value in copies.items()}
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self, gradients: Tensors) -> None:
        """One step of the networks, then one of their anchors."""
        for name, value in self.parameters.items():
            value.grad = gradients[name][self.models]
        self.optimizer.step()
        for name, copy in self.copies.items():
            copy.lerp_(self.parameters[name], 1 - MOMENTUM)


def _queue(bags: Sequence[Tensor]) -> Tensor:
    """The next bag of every network, and -1 where it has none left, ``[longest, networks]``."""
    return nn.utils.rnn.pad_sequence(list(bags), padding_value=-1)


def _seeded(method: Method, fold: Fold) -> MILNetwork:
    torch.manual_seed(fold.seed)
    return method.network(fold.bags.features.shape[1])


def _names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def _stack(networks: Sequence[nn.Module]) -> Tensors:
    every = [dict(network.named_parameters()) for network in networks]
    return {name: torch.stack([own[name].detach() for own in every]) for name in every[0]}


class _Open(nn.Module):
    """The whole output of a network without the checks at its door, which would have to look at a feature."""

    def __init__(self, network: MILNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor | None) -> Tensors:
        return self.network.describe(image, mask)


class _Scores(nn.Module):
    """The attention scores of an anchor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor | None, output: Tensors) -> Tensor:
        return self.network.attention_scores(image, mask, output)  # type: ignore[operator]


def _call(module: nn.Module, parameters: Mapping[str, Tensor], *args: Any) -> Any:
    return functional_call(module, {f"network.{name}": value for name, value in parameters.items()}, args)


def _loss(
    method: Method,
    network: nn.Module,
    anchor: nn.Module | None,
    parameters: Tensors,
    copies: Tensors,
    image: Tensor,
    mask: Tensor,
    label: Tensor,
) -> Tensor:
    """Of one network for one bag."""
    seen = None if method.squared else mask
    output = {**_call(network, parameters, image, seen), "mask": mask}
    if anchor is not None:
        output["anchor_logits"] = _call(anchor, copies, image, seen, output)
    return method.loss(output, label)


def _logits(method: Method, network: nn.Module, parameters: Tensors, image: Tensor, mask: Tensor) -> Tensor:
    return _call(network, parameters, image, None if method.squared else mask)["logits"]


def _differentiate(
    losses: Callable[..., Tensor],
    shelf: Shelf,
    bags: Tensor,
    parameters: Tensors,
    copies: Tensors,
    gradients: Tensors,
) -> None:
    """Set the gradients of all networks that have a bag, each for its own."""
    for models, some_bags in shelf.parts(bags):
        leaves = {name: value[models].requires_grad_() for name, value in parameters.items()}
        anchors = {name: value[models] for name, value in copies.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
            total = losses(leaves, anchors, *shelf.take(models, some_bags)).sum()
            found = torch.autograd.grad(total, list(leaves.values()))
        for name, gradient in zip(leaves, found, strict=True):
            if len(gradient) == len(bags):
                gradients[name] = gradient.contiguous()  # the fused Adam of CPUs takes no other without a word
            else:
                gradients[name][models] = gradient


def _answers(logits: Callable[..., Tensor], shelf: Shelf, bags: Tensor, parameters: Tensors) -> Tensor:
    """What every network makes of its own bag, 0 or 1, ``[folds]``."""
    answers = torch.full_like(bags, -1)
    for models, some_bags in shelf.parts(bags):
        image, mask, _ = shelf.take(models, some_bags)
        some = {name: value[models] for name, value in parameters.items()}
        with sdpa_kernel(SDPBackend.MATH):
            answers[models] = logits(some, image, mask).argmax(dim=2)[:, 0]
    return answers
