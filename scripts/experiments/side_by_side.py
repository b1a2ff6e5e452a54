"""Many small networks of one design, each on its own fold and its own bag, trained in the same vectorised step.

Bags of the classic sets are so small that a step of one network is mostly waiting for Python. Parameters of all
networks are stacked here and a step is one ``vmap`` over them; what a network learns is what it would learn alone,
bag by bag with ``torch.optim.Adam`` and ``monai_mil.training.Anchor``. It runs on the GPU where there is one: first
parameters and the order of bags are the same there, what dropout draws is not.
"""

from __future__ import annotations

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
from experiments.graphs import Graphs, Tensors
from experiments.shelf import Shelf, shelve
from monai_mil.networks import ABMIL
from monai_mil.networks.contract import MILNetwork

EPOCHS = 40
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 1e-5
MOMENTUM = 0.999


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
    """

    network: Callable[[int], MILNetwork]
    loss: nn.Module
    anchored: bool = False
    squared: bool = False


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
    method: Method, folds: Sequence[Fold], epochs: int = EPOCHS, on_epoch: Callable[[int], None] = lambda epoch: None
) -> dict[Fold, Trained]:
    """Train a network for every fold, one bag a step, and test each after every epoch.

    Args:
        method: the networks.
        folds: of one set or of several of equal width.
        epochs: over the training bags.
        on_epoch: is called with the number of every epoch that is finished.
    """
    folds = sorted(folds, key=lambda fold: len(fold.train))
    shelf, device = shelve(folds, method.squared), _device()
    there = shelf.to(device)
    networks = [_seeded(method, fold) for fold in folds]
    network, parameters = networks[0], {name: value.to(device) for name, value in _stack(networks).items()}
    anchor = _Scores(network.anchor_copy()) if method.anchored else None  # type: ignore[operator]
    copies = {} if anchor is None else {name: parameters[name].clone() for name in _names(anchor.network)}
    gradients = {name: torch.empty_like(value) for name, value in parameters.items()}
    answers = {"answer": torch.empty(len(folds), dtype=torch.int64, device=device)}
    groups = [
        StepGroup(folds, size, parameters, gradients, copies) for size in sorted({len(fold.train) for fold in folds})
    ]
    generators = [torch.Generator().manual_seed(fold.seed) for fold in folds]
    torch.manual_seed(folds[0].seed)
    losses = vmap(partial(_loss, method, _Unchecked(network), anchor), randomness="different")
    logits = vmap(partial(_logits, method, _Unchecked(network)))
    differentiate = _for_bags(shelf, partial(_gradients, losses, there, parameters, copies), gradients)
    answer = _for_bags(shelf, partial(_answers, logits, there, parameters), answers)
    tests = _queue(shelf.test)
    right = torch.zeros(len(folds), epochs, len(tests), dtype=torch.bool)
    for epoch in range(epochs):
        network.train()
        orders = [bags[torch.randperm(len(bags), generator=g)] for bags, g in zip(shelf.train, generators, strict=True)]
        for step, bags in enumerate(_queue(orders)):
            differentiate(bags)
            for group in groups:
                if step < group.size:
                    group.step()
        network.eval()
        for place, bags in enumerate(tests):
            answer(bags)
            right[:, epoch, place] = answers["answer"].cpu() == shelf.labels[bags]
        on_epoch(epoch + 1)
    learnt = {name: value.cpu() for name, value in parameters.items()}
    return {
        fold: Trained(right[index, :, : len(fold.test)].numpy(), {name: value[index] for name, value in learnt.items()})
        for index, fold in enumerate(folds)
    }


class StepGroup:
    """Networks with equally many training bags, so that they are at the same step of Adam.

    Args:
        folds: of all networks, those of a group side by side.
        size: training bags of this group.
        parameters: of all networks, changed in place.
        gradients: of all networks.
        copies: parameters of their anchors, changed in place.
    """

    def __init__(
        self, folds: Sequence[Fold], size: int, parameters: Tensors, gradients: Tensors, copies: Tensors
    ) -> None:
        members = [index for index, fold in enumerate(folds) if len(fold.train) == size]
        self.size = size
        self.models = slice(members[0], members[-1] + 1)
        self.parameters = {name: value[self.models] for name, value in parameters.items()}
        self.copies = {name: value[self.models] for name, value in copies.items()}
        for name, value in self.parameters.items():
            value.grad = gradients[name][self.models]
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self) -> None:
        """One step of the networks, then one of their anchors."""
        self.optimizer.step()
        for name, copy in self.copies.items():
            copy.lerp_(self.parameters[name], 1 - MOMENTUM)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # all of float32, as on CPUs
    return torch.device("cuda")


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


class _Unchecked(nn.Module):
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


def _for_bags(shelf: Shelf, work: Callable[[Any, Tensor, int], Tensors], results: Tensors) -> Callable[[Tensor], None]:
    """Put the results of the work of all networks for their next bags into their places, one size after the other.

    Args:
        shelf: on the CPU.
        work: from networks, a bag for each and their common length to results, where ``results`` are.
        results: of all networks, changed in place.
    """
    if next(iter(results.values())).is_cuda:
        graphs = Graphs(lambda size, bags: work(slice(None), bags, shelf.longest(size)), results)
        do = graphs.replay
    else:

        def do(size: int, models: Any, bags: Tensor) -> None:
            for name, value in work(models, bags, shelf.reach(bags)).items():
                results[name][models] = value

    def all_parts(bags: Tensor) -> None:
        for size, models, some_bags in shelf.parts(bags):
            do(size, models, some_bags)

    return all_parts


def _gradients(
    losses: Callable[..., Tensor],
    shelf: Shelf,
    parameters: Tensors,
    copies: Tensors,
    models: Any,
    bags: Tensor,
    reach: int,
) -> Tensors:
    """Of every network for its own bag."""
    leaves = {name: value[models].requires_grad_() for name, value in parameters.items()}
    anchors = {name: value[models] for name, value in copies.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
        total = losses(leaves, anchors, *shelf.take(models, bags, reach)).sum()
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def _answers(
    logits: Callable[..., Tensor], shelf: Shelf, parameters: Tensors, models: Any, bags: Tensor, reach: int
) -> Tensors:
    """What every network makes of its own bag, 0 or 1."""
    image, mask, _ = shelf.take(models, bags, reach)
    some = {name: value[models] for name, value in parameters.items()}
    with sdpa_kernel(SDPBackend.MATH):
        return {"answer": logits(some, image, mask).argmax(dim=2)[:, 0]}
