"""Attention-based multiple-instance learning (Ilse, Tomczak and Welling, ICML 2018)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import (
    AttentionNetwork,
    PoolWeights,
    among_padding,
    attention_pool,
    dropped,
    front_lengths,
    stream_pool,
)
from monai_mil.networks.contract import ChunkedNetwork, check_chunks, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded


class ABMIL(AttentionNetwork, ChunkedNetwork):
    """ABMIL with gated (Eq. 9) or plain (Eq. 8) attention over hidden rows.

    ``h_i = relu(W x_i + b)``; ``s_i = w^T (tanh(V h_i) * sigmoid(U h_i))``, without the sigmoid if not gated;
    ``a = softmax(s)`` over the instances; ``z = sum_i a_i h_i``; ``logits = C z + b``. With several heads each has
    its own ``w`` and the ``z`` are concatenated.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, heads * hidden_dim]``. An
    instance's score is its attention. Multi-label tasks read the same logits through a sigmoid.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of ``V`` and ``U``.
        heads: number of attention distributions.
        gated: use the sigmoid branch.
        dropout: probability of zeroing a value of ``h`` in training, below 1.
        gate_dropout: likewise of a value behind the tanh and of one behind the sigmoid, as in CLAM's program. Training
            then holds every step's values in memory.

    Raises:
        ValueError: ``dropout`` or ``gate_dropout`` is not in [0, 1).

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> network = ABMIL(in_channels=16, num_classes=2)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)  # one bag of 100 instances
        >>> list(output["logits"].shape), list(output["attention"].shape)
        ([1, 2], [1, 1, 100])
        >>> round(output["attention"].sum().item(), 4)
        1.0
    """

    score_parameters = ("hidden", "gates", "score")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 256,
        heads: int = 1,
        gated: bool = True,
        dropout: float = 0.0,
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes)
        for name, share in (("dropout", dropout), ("gate_dropout", gate_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        self.attention_dim = attention_dim
        self.dropout = dropout
        self.gate_dropout = gate_dropout
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.gates = nn.Linear(hidden_dim, 2 * attention_dim if gated else attention_dim)
        self.score = nn.Linear(attention_dim, heads)
        self.classifier = nn.Linear(heads * hidden_dim, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if torch.jit.is_scripting() or is_recorded() or self._drops_gates():
            return self._whole(image, mask)
        return self._in_chunks(image, mask)

    def _drops_gates(self) -> bool:
        """Whether this is a training with dropout behind the gates, which the steps in chunks do not know."""
        return self.training and self.gate_dropout > 0

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        bag, scores = stream_pool(check_chunks(chunks, self.hidden.weight.device), self._weights())
        return self._answer(bag[None], scores[None])

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._pool(image, mask)[1]

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`_pool`."""
        return self._answer(*self._pool(image, mask))

    @torch.jit.unused
    def _pool(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Bag by bag over the real instances only, in chunks of them: bags ``[b, h, i]`` and scores ``[b, h, n]``."""
        weights, dropout = self._weights(), self.dropout if self.training else 0.0
        bags, scores = [], []
        lengths = [] if mask is None else front_lengths(mask)
        for index, rows in enumerate(image.mT):
            if mask is None:
                bag, bag_scores = attention_pool(rows, weights, dropout)
            else:
                real = rows[mask[index]] if lengths[index] < 0 else rows[: lengths[index]]
                bag, real_scores = attention_pool(real, weights, dropout)
                bag_scores = among_padding(real_scores, mask[index])
            bags.append(bag)
            scores.append(bag_scores)
        return torch.stack(bags), torch.stack(scores)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The same in plain operations on the whole batch: what TorchScript, traces and ONNX hold."""
        bag, scores = self._pool_whole(image, mask)
        return self._answer(bag, scores)

    def _pool_whole(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`_pool` in plain operations on the whole batch."""
        rows = image.transpose(1, 2).to(self.hidden.weight.dtype)
        hidden = dropped(F.relu(self.hidden(rows)), self.dropout, self.training)
        gates = self.gates(hidden)
        gated = dropped(torch.tanh(gates[:, :, : self.attention_dim]), self.gate_dropout, self.training)
        if gates.shape[2] > self.attention_dim:
            sigmoid = torch.sigmoid(gates[:, :, self.attention_dim :])
            gated = gated * dropped(sigmoid, self.gate_dropout, self.training)
        scores = self.score(gated).transpose(1, 2)
        scores = scores.to(exact_dtype(scores.dtype))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], -float("inf"))
            hidden = hidden.masked_fill(~mask[:, :, None], 0.0)
        return exact_matmul(torch.softmax(scores, dim=2), hidden), scores

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        bag = bag.flatten(1)
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
        }

    def _weights(self) -> PoolWeights:
        layers = (self.hidden, self.gates, self.score)
        return PoolWeights(*(tensor for layer in layers for tensor in (layer.weight, layer.bias)))

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], dropout: float = 0.0) -> ABMIL:
        """The attention network and bag classifier of a CLAM-SB checkpoint, gated or not.

        Its instance classifiers are left out: this network has none.

        Args:
            state_dict: parameters under CLAM's names.
            dropout: as in the constructor; a checkpoint does not tell.

        Raises:
            ValueError: the names are not those of CLAM-SB.
        """
        hidden = _layer(state_dict, r"attention_net\.0")
        gated = any(name.endswith("attention_b.0.weight") for name in state_dict)
        if gated:
            tanh, sigmoid = (_layer(state_dict, rf"attention_net\.\d\.attention_{branch}\.0") for branch in "ab")
            gates = {key: torch.cat([tanh[key], sigmoid[key]]) for key in tanh}
            score = _layer(state_dict, r"attention_net\.\d\.attention_c")
        else:
            gates = _layer(state_dict, r"attention_net\.\d\.module\.0")
            score = _layer(state_dict, r"attention_net\.\d\.module\.[23]")
        classifier = _layer(state_dict, r"classifiers")
        heads, attention_dim = score["weight"].shape
        hidden_dim, in_channels = hidden["weight"].shape
        network = cls(
            in_channels, len(classifier["bias"]), hidden_dim, attention_dim, heads, gated=gated, dropout=dropout
        )
        network.hidden.load_state_dict(hidden)
        network.gates.load_state_dict(gates)
        network.score.load_state_dict(score)
        network.classifier.load_state_dict(classifier)
        return network


def _layer(state_dict: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Weight and bias, float32, of the one layer whose name matches."""
    found = {}
    for name, tensor in state_dict.items():
        match = re.fullmatch(rf"{pattern}\.(weight|bias)", name)
        if match:
            found[match[1]] = tensor.float()
    if len(found) != 2:
        raise ValueError(f"not a CLAM-SB state dict: no layer is named like '{pattern}'")
    return found
