"""The loss of a network that answers at several levels: every level has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_PREFIX = "level_"


class LevelLoss(nn.Module):
    """``sum_i levels[i](output of level i, label)``: HAG-MIL's training, all levels side by side.

    Levels share no weights and choosing tiles carries no gradient, so one step of the sum moves every level as steps of
    the single losses, one after the other, would.

    Args:
        levels: the loss of every level, coarsest first, each a :class:`MILLoss` for example.

    Attributes:
        last: the detached loss of every level in the latest call, for logging.

    Raises:
        ValueError: there is no level.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagCrossEntropy, LevelLoss
        >>> loss = LevelLoss([BagCrossEntropy(), BagCrossEntropy()])
        >>> round(loss({"level_logits": torch.zeros(1, 2, 2)}, torch.tensor([1])).item(), 4)  # log 2 a level
        1.3863
    """

    def __init__(self, levels: Sequence[nn.Module]) -> None:
        super().__init__()
        if not levels:
            raise ValueError("a loss of no level teaches nothing; give one for every level of the network")
        self.levels = nn.ModuleList(levels)
        self.last: list[Tensor] = []

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """The sum, a scalar.

        Args:
            output: has ``level_logits`` ``[b, L, c]``; level ``i`` sees row ``i`` of every ``level_<name>`` as
                ``<name>``.
            label: as the levels' losses take it.

        Raises:
            ValueError: the output has no levels, or another number of them.
        """
        logits = output.get("level_logits")
        if logits is None or logits.shape[1] != len(self.levels):
            found = "no levels" if logits is None else f"{logits.shape[1]} levels"
            raise ValueError(f"losses of {len(self.levels)} levels for an output with {found}; give one for each")
        own = {key.removeprefix(_PREFIX): value for key, value in output.items() if key.startswith(_PREFIX)}
        losses = [
            loss({key: value[:, level] for key, value in own.items()}, label) for level, loss in enumerate(self.levels)
        ]
        self.last = [loss.detach() for loss in losses]
        return torch.stack(losses).sum()
