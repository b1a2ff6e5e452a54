"""Bases of networks with attention: for ASMIL's anchor, for bags that go one by one, and for bags in chunks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks.padding import among_padding
from monai_mil.networks.contract import ChunkedNetwork, MILNetwork, exact_dtype, exact_matmul
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


class BagByBagNetwork(AttentionNetwork):
    """Base of attention networks whose answer depends on where a bag ends: padding is taken out before they begin.

    A subclass has a ``classifier`` and implements :meth:`_bag_and_scores` and :meth:`_scores`.
    """

    if TYPE_CHECKING:  # TorchScript takes annotations of a class for data
        classifier: nn.Linear

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if mask is None:
            return self._answer(*self._bag_and_scores(image))
        bags: list[Tensor] = []
        scores: list[Tensor] = []
        for index in range(image.shape[0]):
            real = mask[index]
            bag, real_scores = self._bag_and_scores(image[index : index + 1, :, real])
            bags.append(bag)
            scores.append(among_padding(real_scores, real))
        return self._answer(torch.cat(bags), torch.cat(scores))

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        if mask is None:
            return self._scores(image)
        bags = zip(image.split(1), mask, strict=True)
        return torch.cat([among_padding(self._scores(bag[:, :, real]), real) for bag, real in bags])

    def _bag_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What is classified, ``[b, i]``, and attention before softmax, ``[b, h, n]``, of bags without padding."""
        raise NotImplementedError

    @torch.jit.unused
    def _scores(self, image: Tensor) -> Tensor:
        """The latter alone."""
        return self._bag_and_scores(image)[1]

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag.to(exact_dtype(bag.dtype)),
        }


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
