"""Bases of networks with attention: for ASMIL's anchor, for bags that go one by one, and for bags in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn

from monai_mil.networks.blocks.attention_pool import split_rows
from monai_mil.networks.blocks.padding import among_padding, real_rows, restore_padding
from monai_mil.networks.contract import ChunkedNetwork, MILNetwork, check_chunks, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

LONG_BAG = {"cpu": 100_000, "cuda": 2_000_000}
"""Instances from which on evaluation keeps nothing wide of an instance, though its features must then be read anew."""

ReadBag = Callable[[], Iterable[Tensor]]
"""Starts the chunks ``[m, d]`` of one bag, all instances real, from the first."""


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


class LongBagNetwork(AttentionNetwork):
    """Base of attention networks that evaluate a long bag in parts, and train and export in plain operations.

    A subclass implements :meth:`_whole` and :meth:`_answer_rows`, which give the same. One that makes nothing twice for
    it sets ``rereads`` to False: all bags are then evaluated in parts, and not only long ones (:data:`LONG_BAG`).
    """

    rereads = True

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled() or self.training:
            return self._whole(image, mask)
        return self._whole(image, mask) if self.rereads and not is_long(image) else self._in_chunks(image, mask)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The output in plain operations on the whole batch: for training, TorchScript, traces and ONNX."""
        raise NotImplementedError

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The output bag by bag over the real instances, in chunks of them; without gradients."""
        outputs = []
        for index, rows in enumerate(image.mT):
            if mask is None:
                outputs.append(self._answer_rows(rows))
            else:
                output = self._answer_rows(real_rows(rows, mask[index]))
                outputs.append(restore_padding(output, mask[index], self.listed_keys))
        if len(outputs) == 1:
            return outputs[0]
        return {key: torch.cat([output[key] for output in outputs]) for key in outputs[0]}

    @torch.jit.unused
    def _answer_rows(self, rows: Tensor) -> dict[str, Tensor]:
        """The output of a batch of one bag ``[n, d]`` without padding, of any floating type; without gradients."""
        raise NotImplementedError


class ChunkedAttentionNetwork(LongBagNetwork, ChunkedNetwork):
    """Base of attention networks that evaluate a bag in chunks of instances, wherever these come from.

    A subclass implements :meth:`_whole` and :meth:`_answer_bag`, which give the same. One that reads a bag more than
    once says so in ``rereads``.
    """

    rereads = False

    @torch.jit.unused
    def _answer_rows(self, rows: Tensor) -> dict[str, Tensor]:
        return self._answer_bag(partial(split_rows, rows))

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        if self.rereads and isinstance(chunks, Iterator):
            raise ValueError(
                f"{type(self).__name__} reads a bag twice: pass a list or a dataset of chunks, not a generator"
            )
        device = next(self.parameters()).device
        return self._answer_bag(lambda: check_chunks(chunks, device))

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        """The output of a batch of one bag without padding, which comes in chunks; without gradients."""
        raise NotImplementedError


@torch.jit.ignore
def is_long(image: Tensor) -> bool:
    """Whether a bag ``[b, d, n]`` is too long for evaluation to keep something wide of every instance."""
    return image.shape[2] > LONG_BAG.get(image.device.type, LONG_BAG["cpu"])
