"""HAG-MIL: hierarchical attention-guided multiple-instance learning (Xiong et al., IJCAI 2023)."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import child_rows, nested_rank, real_rows, restore_padding, tree_sizes
from monai_mil.networks.contract import MILNetwork, check_bag
from monai_mil.networks.graph import evaluating, is_exported
from monai_mil.networks.iat import IAT

Source = Callable[[Tensor], Tensor]
"""Gives the features ``[m, d]`` of the rows ``[m]`` of a level, in the order asked for."""


class HAGMIL(MILNetwork):
    """Reads the coarsest magnification whole and lets its attention choose which tiles are looked at one level finer.

    Every level has an :class:`IAT` of its own. The ``k`` most attended tiles of a level are opened: their four children
    each, in descending attention of the parents, are what the next finer level sees, down to the finest, whose answer
    is the slide's. Choosing carries no gradient, so the levels learn side by side, each from its own loss
    (``losses.LevelLoss``). As of an IAT, the order of a level's tiles matters.

    Bags are packed (:mod:`monai_mil.networks.blocks.tree`): ``image`` ``[b, d, N]`` holds the coarsest level's ``n``
    tiles first, then their children level by level, ``N = n (4^L - 1) / 3``. The output holds, over the packed
    instances and with the levels coarsest first:

    - ``logits`` and ``bag`` of the finest level, ``level_logits`` ``[b, L, c]`` of all;
    - ``attention_logits`` ``[b, L, N]``, in row ``i`` those of level ``i``, ``-inf`` where it did not look, and
      ``attention``, a distribution in every row;
    - ``instance_logits`` ``[b, c, N]``, class evidence by the level that looked, ``-inf`` where none did;
    - ``level_top_instance_logits`` and ``level_bottom_instance_logits`` ``[b, L, c, sampled]``, for the instance loss,
      unless ``sampled`` is 0;
    - in evaluation ``instance_scores`` ``[b, c, N]``, :func:`monai_mil.networks.blocks.nested_rank`, the same for all
      classes.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        levels: ``L``, at least 1; a single level is a plain :class:`IAT`.
        k_train: how many tiles are opened while training; one number, or one for every level but the finest.
        k_eval: likewise in evaluation.
        iat: further arguments of every level's :class:`IAT`.

    Raises:
        ValueError: no level, or numbers of tiles that do not fit the levels.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import HAGMIL
        >>> widths = {"hidden_dims": (16, 24, 16), "instance_channels": 8, "attention_dim": 8}
        >>> network = HAGMIL(16, 2, levels=2, k_eval=3, **widths).eval()
        >>> slide = torch.randn(1, 16, 10 + 40)  # ten coarse tiles and their children
        >>> output = network(slide, return_dict=True)
        >>> output["attention"].gt(0).sum(dim=2)  # all coarse tiles are looked at, of the fine ones twelve
        tensor([[10, 12]])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        levels: int = 3,
        k_train: int | Sequence[int] = 7000,
        k_eval: int | Sequence[int] = 10000,
        **iat: Any,
    ) -> None:
        super().__init__(num_classes)
        if levels < 1:
            raise ValueError(f"a network of {levels} levels sees nothing; give 1 or more")
        self.k_train = _for_each(k_train, levels - 1, "k_train")
        self.k_eval = _for_each(k_eval, levels - 1, "k_eval")
        self.levels = nn.ModuleList(IAT(in_channels, num_classes, **iat) for _ in range(levels))

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`; the number of a bag's instances must be that of a packed bag."""
        bags: list[dict[str, Tensor]] = []
        for index in range(image.shape[0]):
            rows = image[index].transpose(0, 1)
            if mask is None:
                bags.append(self._search(rows))
            else:
                output = self._search(real_rows(rows, mask[index]))
                bags.append(restore_padding(output, mask[index], self.listed_keys))
        return {key: torch.cat([bag[key] for bag in bags]) for key in bags[0].keys()}  # noqa: SIM118  TorchScript

    @torch.jit.unused
    def descend(self, sources: Sequence[Source]) -> dict[str, Tensor]:
        """Evaluate one slide, as in evaluation mode, whose finer tiles are read only where attention leads.

        Args:
            sources: for every level, coarsest first, what gives the features of some of its rows; ``len`` of the first
                is the number of tiles. Features may lie anywhere and be of any floating type.

        Returns:
            The output of a batch of one packed bag, as from ``forward(..., return_dict=True)`` on all features, which
            are never asked for.

        Raises:
            ValueError: there are more or fewer sources than levels, no tile, or a feature that is not finite.
        """
        if len(sources) != len(self.levels):
            raise ValueError(f"{len(sources)} sources for a network of {len(self.levels)} levels")
        with evaluating(self):
            return self._descend(sources)

    @torch.jit.unused
    def _descend(self, sources: Sequence[Source]) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        rows = torch.arange(len(sources[0]), device=device)  # type: ignore[arg-type]
        outputs: list[dict[str, Tensor]] = []
        looked: list[Tensor] = []
        for level, (network, source) in enumerate(zip(self.levels, sources, strict=True)):
            if level:
                rows = self._open(outputs[-1]["attention_logits"], rows, level - 1)
            features = check_bag(source(rows).T[None], None).to(device)
            outputs.append(network.describe_unpadded(features.transpose(1, 2)))  # type: ignore[operator]
            looked.append(rows)
        return self._pack(outputs, looked, [len(looked[0]) * 4**level for level in range(len(self.levels))])

    def _search(self, features: Tensor) -> dict[str, Tensor]:
        """The output for one bag, ``[N, d]``."""
        sizes = tree_sizes(features.shape[0], len(self.levels))
        rows = torch.arange(sizes[0], device=features.device)
        start = 0
        outputs: list[dict[str, Tensor]] = []
        looked: list[Tensor] = []
        for level, network in enumerate(self.levels):
            if level > 0:
                start += sizes[level - 1]
                rows = self._open(outputs[level - 1]["attention_logits"], rows, level - 1)
            outputs.append(network.describe_unpadded(features.index_select(0, start + rows)[None]))  # type: ignore[operator]
            looked.append(rows)
        return self._pack(outputs, looked, sizes)

    def _open(self, scores: Tensor, rows: Tensor, level: int) -> Tensor:
        """Rows of the next finer level: children of the most attended of ``rows``, by scores ``[1, 1, m]``."""
        k = self.k_train[level] if self.training else self.k_eval[level]
        return child_rows(rows.index_select(0, _first(_descending(scores.detach()[0, 0]), k)))

    def _pack(self, outputs: list[dict[str, Tensor]], looked: list[Tensor], sizes: list[int]) -> dict[str, Tensor]:
        """One output in packed order from those of the levels, each for the rows that it looked at."""
        nothing = -float("inf")
        scores: list[Tensor] = []
        evidence = outputs[0]["instance_logits"].new_full([1, self.num_classes, sum(sizes)], nothing)
        start = 0
        for output, rows, size in zip(outputs, looked, sizes):  # noqa: B905  TorchScript
            own = output["attention_logits"][0, 0]
            scores.append(own.new_full([sum(sizes)], nothing).scatter(0, start + rows, own))
            evidence = evidence.index_copy(2, start + rows, output["instance_logits"])
            start += size
        packed = {key: outputs[-1][key] for key in ("logits", "bag")}
        packed["level_logits"] = torch.stack([output["logits"] for output in outputs], dim=1)
        packed["attention_logits"] = torch.stack(scores)[None]
        packed["attention"] = torch.softmax(packed["attention_logits"], dim=2)
        packed["instance_logits"] = evidence
        for key in ("top_instance_logits", "bottom_instance_logits"):
            if key in outputs[0]:
                packed["level_" + key] = torch.stack([output[key] for output in outputs], dim=1)
        if not self.training:
            ranks = nested_rank(packed["attention_logits"][0].detach(), len(sizes))
            packed["instance_scores"] = ranks.expand(1, self.num_classes, -1)
        return packed

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A network of one level, which takes bags of any size, for the contract's tests."""
        network = HAGMIL(12, 3, levels=1, hidden_dims=(16, 24), instance_channels=12, attention_dim=8, sampled=2)
        return network, (12,)

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        k_train: int | Sequence[int] = 7000,
        k_eval: int | Sequence[int] = 10000,
        **settings: Any,
    ) -> HAGMIL:
        """A checkpoint of one or more levels, ``model0.*`` the finest; a file without such names is one level.

        Args:
            state_dict: parameters under the reference's names.
            k_train: as in the constructor; a checkpoint does not tell.
            k_eval: likewise.
            settings: further arguments of :meth:`IAT.from_reference`.

        Raises:
            ValueError: the names or shapes are another network's, or the levels differ in shape.
        """
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state_dict.items():
            found = re.fullmatch(r"model(\d+)\.(.*)", name)
            level, own = (int(found[1]), found[2]) if found else (0, name)
            states.setdefault(level, {})[own] = tensor
        if not states or sorted(states) != list(range(len(states))):
            raise ValueError(f"not this network's state dict: it has the levels {sorted(states)}")
        levels = [IAT.from_reference(states[level], **settings) for level in reversed(range(len(states)))]
        shapes = [{name: value.shape for name, value in level.state_dict().items()} for level in levels]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("not this network's state dict: its levels differ in shape")
        network = cls(1, levels[0].num_classes, 1, hidden_dims=(8,))
        network.k_train = _for_each(k_train, len(levels) - 1, "k_train")
        network.k_eval = _for_each(k_eval, len(levels) - 1, "k_eval")
        network.levels = nn.ModuleList(levels)
        return network


def _for_each(k: int | Sequence[int], count: int, name: str) -> list[int]:
    """One number a level; the last, the finest, opens none."""
    numbers = list(k) if isinstance(k, Sequence) else [operator.index(k)] * count
    if len(numbers) != count or any(number < 1 for number in numbers):
        raise ValueError(f"{name} must be a number of tiles, or {count} of them, one for every level but the finest")
    return [*numbers, 0]


def _first(order: Tensor, k: int) -> Tensor:
    """``order[:k]``, which ``torch.export`` would take for all of it or for ``k`` as its example has it."""
    if torch.jit.is_scripting() or not is_exported():
        return order[:k]
    return order.narrow(0, 0, torch.sym_min(k, order.shape[0]))


def _descending(scores: Tensor) -> Tensor:
    """Places of the scores ``[m]`` from the highest to the lowest, equal ones in their order."""
    if torch.jit.is_scripting():
        return torch.sort(scores, descending=True, stable=True)[1]
    if torch.onnx.is_in_onnx_export():  # whose sort is stable, and which knows no such argument
        return torch.sort(scores, descending=True)[1]
    return torch.sort(scores, descending=True, stable=True)[1]
