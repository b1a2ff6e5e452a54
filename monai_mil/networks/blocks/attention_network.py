"""Bases of networks with attention: one that ASMIL's anchor can follow, and one that also evaluates bags in chunks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Self

import torch
from torch import Tensor

from monai_mil.networks.contract import ChunkedNetwork, MILNetwork, exact_dtype
from monai_mil.networks.graph import is_recorded


class AttentionNetwork(MILNetwork):
    """Base of networks that ``training.Anchor`` can follow: copies of some modules make their attention scores.

    A subclass names the modules in ``score_parameters`` and implements :meth:`attention_scores` with nothing else.

    Args:
        num_classes: ``c``.
    """

    score_parameters: tuple[str, ...]

    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """The ``attention_logits`` of a network or its :meth:`anchor_copy` for bags that the original has answered.

        Args:
            image: ``[b, d, n]``, checked already.
            mask: True where an instance is real, ``[b, n]``, or None.
            output: what the original said of the same bags, read where its answer poses the copy's question.

        Returns:
            ``[b, h, n]``, ``-inf`` on padding, float32 or better.
        """
        raise NotImplementedError

    def anchor_copy(self) -> Self:
        """A copy without dropout and gradients that can make attention scores and nothing else.

        Its parameters bear the names they have here. They are float32 or better: a small step of a moving average is
        lost in less.
        """
        copy = deepcopy(self)
        for name, _ in [*self.named_parameters(), *self.named_buffers()]:
            if not any(name == part or name.startswith(f"{part}.") for part in self.score_parameters):
                owner, _, leaf = name.rpartition(".")
                delattr(copy.get_submodule(owner), leaf)
        copy.to(exact_dtype(next(copy.parameters()).dtype))
        return copy.requires_grad_(False).eval()


class ChunkedAttentionNetwork(AttentionNetwork, ChunkedNetwork):
    """Base of attention networks that evaluate a bag in chunks of instances, and train and export in plain operations.

    A subclass implements :meth:`_whole` and :meth:`_in_chunks`, which give the same, and :meth:`_answer_chunks`.
    """

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled():
            return self._whole(image, mask)
        return self._in_chunks(image, mask)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The output in plain operations on the whole batch: for training, TorchScript, traces and ONNX."""
        raise NotImplementedError

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The output bag by bag over the real instances, in chunks of them; without gradients."""
        raise NotImplementedError
