"""ABMIL as it is used on CT slices: plain attention over the features themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import ChunkedAttentionNetwork, RunningPool, compute_dtype, pool_bags
from monai_mil.networks.contract import check_chunks, exact_dtype, exact_matmul
from monai_mil.networks.reference import class_count, load_reference, reference_parameters, size_of


class SliceABMIL(ChunkedAttentionNetwork):
    """Plain ABMIL (Ilse et al. 2018, Eq. 8) without a hidden layer, as the Normal Guidance paper pools slices.

    ``s_i = w^T tanh(V x_i + b) + b'``; ``a = softmax(s)`` over the slices; ``z = sum_i a_i x_i``;
    ``logits = C z + c``. The order of the slices does not matter.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, d]``; a slice's score is its
    attention.

    Args:
        in_channels: ``d``, width of a slice's features.
        num_classes: ``c``.
        attention_dim: rows of ``V``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import SliceABMIL
        >>> network = SliceABMIL(in_channels=16, num_classes=2)
        >>> scan = torch.randn(1, 16, 40)
        >>> torch.allclose(network(scan), network(scan.flip(2)), atol=1e-5)  # the order of the slices does not matter
        True
    """

    score_parameters = ("hidden", "score")

    def __init__(self, in_channels: int, num_classes: int, attention_dim: int = 128) -> None:
        super().__init__(num_classes)
        self.hidden = nn.Linear(in_channels, attention_dim)
        self.score = nn.Linear(attention_dim, 1)
        self.classifier = nn.Linear(in_channels, num_classes)

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        bag, scores = self._stream(check_chunks(chunks, self.hidden.weight.device))
        return self._answer(bag, scores[None])

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._scores(image.to(self.hidden.weight.dtype), mask)

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Bag by bag over the real instances, in chunks of them; without gradients."""
        pooled, scores = pool_bags(image, mask, self._stream)
        return self._answer(pooled[:, 0], scores)

    @torch.jit.unused
    def _stream(self, chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        weight = self.hidden.weight
        dtype = compute_dtype(weight)
        pool = RunningPool(1, weight.shape[1], exact_dtype(weight.dtype), weight.device)
        with torch.autocast(weight.device.type, enabled=False):
            hidden_bias, hidden_weight = self.hidden.bias.to(dtype), weight.to(dtype)
            for rows in chunks:
                hidden = torch.addmm(hidden_bias, rows.to(dtype), hidden_weight.T).tanh_()
                scores = exact_matmul(hidden, self.score.weight.T) + self.score.bias
                pool.add(scores.T, rows.to(weight.dtype))
        return pool.result()

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The same in plain operations on the whole batch: for training, TorchScript, traces and ONNX."""
        image = image.to(self.hidden.weight.dtype)
        scores = self._scores(image, mask)
        if mask is not None:
            image = image.masked_fill(~mask[:, None], 0.0)
        return self._answer(exact_matmul(torch.softmax(scores, dim=2), image.transpose(1, 2)).squeeze(1), scores)

    def _scores(self, image: Tensor, mask: Tensor | None) -> Tensor:
        hidden = torch.tanh(torch.matmul(self.hidden.weight, image) + self.hidden.bias[:, None])
        scores = exact_matmul(self.score.weight, hidden) + self.score.bias
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
        }

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor]) -> SliceABMIL:
        """The reference's ABMIL pooling, with its classifier where the checkpoint has one.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = reference_parameters(state_dict, {"mlp.0.": "hidden.", "mlp.2.": "score."})
        attention_dim, in_channels = (size_of(parameters, "hidden.weight", axis) for axis in (0, 1))
        network = cls(in_channels, class_count(parameters), attention_dim)
        load_reference(network, parameters)
        return network
