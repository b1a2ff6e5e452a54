"""Temporal ensembling of attention: what a slide's attention was in earlier epochs, in the place of ASMIL's anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_mil.training.anchor import Anchor


class TemporalEnsemble(Anchor):
    """``z_k <- m z_k + (1 - m) s_k`` whenever bag ``k`` is visited, a memory of scores in place of one of weights.

    The comparison of the ASMIL paper: every training bag has a moving average of its own attention scores (Laine and
    Aila, ICLR 2017), of the visits before this one, to which its attention is held. At a bag's first visit there is
    none, and the term does not count. It begins with the first scores, where the original begins with 0 and corrects
    for it. The memory is ``[h, n]`` float16 a bag, in main memory and in checkpoints; bags must come whole, as a draw
    of tiles is another bag.

    Args:
        network: one with attention; a DDP wrapper is taken off.
        momentum: ``m``, of the visits; 0.6 in the original.
        warmup_steps: as of :class:`Anchor`.
        every: not read.

    Examples:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import AnchorInferer, TemporalEnsemble
        >>> bag, network = MetaTensor(torch.randn(1, 8, 5), meta={"slide_id": ["a"]}), ABMIL(8, 2)
        >>> inferer = AnchorInferer(TemporalEnsemble(network, momentum=0.6))
        >>> inferer(bag, network)["anchor_weight"], inferer(bag, network)["anchor_weight"]
        (tensor([0.]), tensor([1.]))
    """

    def __init__(self, network: nn.Module, momentum: float = 0.6, warmup_steps: int = 0, every: str = "step") -> None:
        super().__init__(network, momentum, warmup_steps)
        self.memory: dict[str, Tensor] = {}
        self._known = False

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """The remembered scores ``[b, h, n]`` of bags that the network has answered with ``output``.

        Raises:
            ValueError: the bags do not say who they are, or one has another number of instances than before.
        """
        scores = output["attention_logits"].detach()
        names = getattr(image, "meta", {}).get("slide_id")
        if names is None or len(names) != len(scores):
            raise ValueError("temporal ensembling knows bags by their names: load them with LoadBagd and collate_bags")
        targets = scores.clone()
        self._known = all(name in self.memory for name in names)
        for index, name in enumerate(names):
            real = slice(None) if mask is None else mask[index]
            own = scores[index][:, real]
            if name not in self.memory:
                self.memory[name] = own.half().cpu()
                continue
            before = self.memory[name].to(own)
            if before.shape != own.shape:
                raise ValueError(
                    f"bag '{name}' has {own.shape[1]} instances, and had {before.shape[1]} before: temporal ensembling "
                    "needs whole bags, raise SampleInstancesd's num_instances"
                )
            targets[index][:, real] = before
            self.memory[name] = torch.lerp(own, before, self.momentum).half().cpu()
        return targets

    @property
    def weight(self) -> float:
        """0 while a bag of the batch is new, then as of :class:`Anchor`."""
        return super().weight if self._known else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Nothing but the copy that is saved follows the weights."""
        online = dict(self.online.named_parameters())
        for name, mine in self.network.named_parameters():
            mine.copy_(online[name])

    def state_dict(self) -> dict[str, Any]:
        """As of :class:`Anchor`, with the memory."""
        return {**super().state_dict(), "memory": dict(self.memory)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all."""
        super().load_state_dict(state)
        self.memory = dict(state["memory"])
