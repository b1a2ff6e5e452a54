"""The anchor of ASMIL: a moving average of what makes a network's attention scores, which they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_mil.networks.blocks import AttentionNetwork
from monai_mil.training.distributed import unwrap
from monai_mil.training.inferers import FullOutputInferer


class Anchor:
    """``theta' <- m theta' + (1 - m) theta`` behind every optimiser step (Eq. 4), of the scoring modules alone.

    It begins as a copy of the network, without dropout, and never has a gradient. Gradients that are accumulated make
    one step, a step that AMP skips is none, and in DDP every process has the same anchor without a word between them.
    It is part of a run and its checkpoints (give it to :class:`Checkpointer`), not of the network: what is exported
    does not hold it.

    Args:
        network: one with attention; a DDP wrapper is taken off.
        momentum: ``m``.
        warmup_steps: optimiser steps during which the anchor follows but does not count.
        every: ``"step"`` of the optimiser as the paper's method, or ``"epoch"``, its comparison: the anchor moves once
            at an epoch's end.

    Raises:
        ValueError: the network has no attention that a copy can make, or ``momentum``, ``warmup_steps`` or ``every`` is
            out of range.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import Anchor, AnchorInferer
        >>> network = ABMIL(in_channels=8, num_classes=2)
        >>> anchor = Anchor(network, momentum=0.99)
        >>> output = AnchorInferer(anchor)(torch.randn(1, 8, 5), network)
        >>> torch.allclose(output["anchor_logits"], output["attention_logits"])  # it begins as a copy
        True
    """

    def __init__(
        self,
        network: nn.Module,
        momentum: float = 0.999,
        warmup_steps: int = 0,
        every: Literal["step", "epoch"] = "step",
    ) -> None:
        online = unwrap(network)
        if not isinstance(online, AttentionNetwork):
            raise ValueError(
                f"{type(online).__name__} has no attention scores that an anchor could follow; use a network with "
                "attention, such as ABMIL, or train without the anchor"
            )
        if not 0 <= momentum <= 1 or warmup_steps < 0:
            raise ValueError(f"momentum must be in [0, 1] and warmup_steps not below 0: {momentum}, {warmup_steps}")
        if every not in ("step", "epoch"):
            raise ValueError(f"an anchor moves every 'step' or 'epoch', not every '{every}'")
        self.online = online
        self.momentum = momentum
        self.warmup_steps = warmup_steps
        self.every = every
        self.steps = 0
        self.network = online.anchor_copy()
        self._hook: Any = None

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """The anchor's ``attention_logits`` ``[b, h, n]`` for bags that the network has answered with ``output``."""
        return self.network.attention_scores(image.as_subclass(Tensor), mask, output)

    @property
    def weight(self) -> float:
        """0 while it warms up, then 1."""
        return float(self.steps >= self.warmup_steps)

    def attach(self, trainer: Engine) -> None:
        """Follow the steps of a MONAI trainer's optimiser while the trainer runs."""
        trainer.add_event_handler(Events.STARTED, self._begin)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        trainer.add_event_handler(Events.COMPLETED, self._end)

    @torch.no_grad()
    def update(self) -> None:
        """One step of the moving average; buffers are copied."""
        online = dict(self.online.named_parameters())
        pairs = [(mine, online[name].to(mine)) for name, mine in self.network.named_parameters()]
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], 1 - self.momentum)
        buffers = dict(self.online.named_buffers())
        for name, mine in self.network.named_buffers():
            mine.copy_(buffers[name])

    def state_dict(self) -> dict[str, Any]:
        """Its parameters and the number of steps."""
        return {"network": self.network.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.network.load_state_dict(state["network"])
        self.steps = state["steps"]

    def _begin(self, trainer: Any) -> None:
        self._end(trainer)
        self._hook = trainer.optimizer.register_step_post_hook(self._follow)

    def _begin_epoch(self, trainer: Any) -> None:
        """Before the first step the anchor is the network, also one that was loaded or moved since."""
        if self.steps == 0:
            self.network = self.online.anchor_copy()

    def _end_epoch(self, trainer: Any) -> None:
        if self.every == "epoch":
            self.update()

    def _end(self, trainer: Any) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _follow(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # fused optimisers skip the step themselves
        left_out = all(parameter.grad is None for parameter in self.online.parameters())
        if not left_out and (overflow is None or not bool(overflow)):
            self.steps += 1
            if self.every == "step":
                self.update()


class AnchorHandler:
    """Attaches an anchor to the trainer of a config, as an item of its ``train::handlers``.

    A reference to the anchor itself would do, but MONAI looks for a ``_target_`` in every item of that list when it
    checks a bundle's properties.

    Args:
        anchor: of the network that is trained.
    """

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor

    def attach(self, engine: Engine) -> None:
        """See :meth:`Anchor.attach`."""
        self.anchor.attach(engine)


class AnchorInferer(FullOutputInferer):
    """The whole output of a network with the anchor's scores in it, for ``monai_mil.losses.AnchorDivergence``.

    For the trainer alone: evaluation needs no anchor.

    Args:
        anchor: of the network that is trained.
    """

    def __init__(self, anchor: Anchor) -> None:
        super().__init__()
        self.anchor = anchor

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The output with ``anchor_logits`` and ``anchor_weight``; see :class:`FullOutputInferer` for the rest."""
        output = super().__call__(inputs, network, *args, **kwargs)
        scores = self.anchor(inputs, output.get("mask"), output)
        return {**output, "anchor_logits": scores, "anchor_weight": scores.new_full((len(scores),), self.anchor.weight)}
