"""Mean and max pooling: the two baselines every method is held against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import dropped, write_columns
from monai_mil.networks.contract import ChunkedNetwork, check_chunks, exact_dtype
from monai_mil.networks.graph import is_recorded


class InstancePooling(ChunkedNetwork):
    """Classify every instance, ``g_i = C relu(W x_i + b) + b'`` or ``C x_i + b'``, then pool ``g_i`` over the bag.

    The output holds ``logits``, ``instance_logits`` ``[b, c, n]`` and, as ``instance_scores``, their sigmoid (one
    class or multi-label) or softmax over the classes.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of the hidden layer; None for none.
        dropout: probability of zeroing a hidden value in training.
        multi_label: classes do not exclude each other; changes the scores only.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int | None = 512,
        dropout: float = 0.0,
        multi_label: bool = False,
    ) -> None:
        super().__init__(num_classes)
        self.dropout = dropout
        self.chunk_rows = 4096
        self.multi_label = multi_label
        self.hidden = None if hidden_dim is None else nn.Linear(in_channels, hidden_dim)
        self.classifier = nn.Linear(hidden_dim or in_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        return self._answer(self._instance_logits(image), mask)

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        weight, count = self.classifier.weight, 0
        logits = torch.empty(1, self.num_classes, 65536, dtype=exact_dtype(weight.dtype), device=weight.device)
        for rows in check_chunks(chunks, weight.device):
            logits = write_columns(logits, count, self._classify(rows.T[None]))
            count += len(rows)
        if count == 0:
            raise ValueError("a bag without instances has no prediction")
        return self._answer(logits[:, :, :count].clone(), None)

    def _instance_logits(self, image: Tensor) -> Tensor:
        if torch.is_grad_enabled() or image.shape[2] <= self.chunk_rows or is_recorded():
            return self._classify(image)
        shape = (image.shape[0], self.num_classes, image.shape[2])
        logits = torch.empty(shape, dtype=exact_dtype(self.classifier.weight.dtype), device=image.device)
        for start in range(0, image.shape[2], self.chunk_rows):
            end = min(start + self.chunk_rows, image.shape[2])
            logits[:, :, start:end] = self._classify(image[:, :, start:end])
        return logits

    def _classify(self, image: Tensor) -> Tensor:
        rows = image.transpose(1, 2).to(self.classifier.weight.dtype)
        if self.hidden is not None:
            rows = dropped(F.relu(self.hidden(rows)), self.dropout, self.training)
        logits = self.classifier(rows).transpose(1, 2)
        return logits.to(exact_dtype(logits.dtype))

    def _answer(self, instance_logits: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        independent = self.multi_label or self.num_classes == 1
        scores = torch.sigmoid(instance_logits) if independent else torch.softmax(instance_logits, dim=1)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], 0.0)
        return {
            "logits": self._pool(instance_logits, mask),
            "instance_logits": instance_logits,
            "instance_scores": scores,
        }

    def _pool(self, instance_logits: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError


class MeanPooling(InstancePooling):
    """The bag's logits are the mean of its instances' logits.

    See :class:`InstancePooling` for the arguments and the output.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import MeanPooling
        >>> network = MeanPooling(in_channels=16, num_classes=2)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> torch.allclose(output["logits"], output["instance_logits"].mean(dim=2), atol=1e-6)
        True
    """

    def _pool(self, instance_logits: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return instance_logits.mean(dim=2)
        real = mask[:, None, :]
        return instance_logits.masked_fill(~real, 0.0).sum(dim=2) / real.sum(dim=2)


class MaxPooling(InstancePooling):
    """The bag's logit of a class is the highest of its instances' logits.

    See :class:`InstancePooling` for the arguments and the output.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import MaxPooling
        >>> network = MaxPooling(in_channels=16, num_classes=2)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> torch.equal(output["logits"], output["instance_logits"].amax(dim=2))
        True
    """

    def _pool(self, instance_logits: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            instance_logits = instance_logits.masked_fill(~mask[:, None, :], -float("inf"))
        return instance_logits.amax(dim=2)
