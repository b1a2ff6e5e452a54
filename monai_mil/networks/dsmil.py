"""DSMIL: dual-stream multiple-instance learning (Li, Li and Eliceiri, CVPR 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import (
    ChunkedAttentionNetwork,
    RunningPool,
    among_padding,
    compute_dtype,
    split_rows,
    write_columns,
)
from monai_mil.networks.contract import check_chunks, exact_dtype, exact_matmul
from monai_mil.networks.reference import check_tensors, load_reference, size_of

REFERENCE_NAMES = {
    "i_classifier.fc.0.": "instances.",
    "b_classifier.q.0.": "query1.",
    "b_classifier.q.2.": "query2.",
    "b_classifier.fcc.": "classifier.",
}


class DSMIL(ChunkedAttentionNetwork):
    """One stream classifies instances, the other attends to those like the most suspicious one of each class.

    ``g_i = W x_i + b``; ``m_c = argmax_i g_ic``; ``q_i = tanh(W2 relu(W1 x_i + b1) + b2)``;
    ``s_ci = q_i . q_{m_c} / sqrt(e)``; ``a_c = softmax(s_c)`` over the instances; ``z_c = sum_i a_ci x_i``;
    ``logits = C (z_1, ..., z_c) + b'``. No gradient passes through the choice of ``m_c``, so the first stream learns
    from its own loss (``MaxInstance``) alone; the paper trains half of that and half of the bag's.

    The output holds ``logits``, ``attention`` and ``attention_logits`` of one head a class, ``bag`` ``[b, c * d]``,
    ``instance_logits`` (``-inf`` on padding), ``critical``, and the attention as ``instance_scores`` ``[b, c, n]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        query_dim: ``e``, width of a query.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import DSMIL
        >>> network = DSMIL(in_channels=16, num_classes=2)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["instance_logits"].shape), list(output["critical"].shape)
        ([1, 2, 100], [1, 2])
        >>> torch.equal(output["critical"], output["instance_logits"].argmax(dim=2))
        True
    """

    score_parameters = ("query1", "query2")

    def __init__(self, in_channels: int, num_classes: int, query_dim: int = 128) -> None:
        super().__init__(num_classes)
        self.instances = nn.Linear(in_channels, num_classes)
        self.query1 = nn.Linear(in_channels, query_dim)
        self.query2 = nn.Linear(query_dim, query_dim)
        self.classifier = nn.Linear(num_classes * in_channels, num_classes)

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`; asks for the original's critical instances."""
        return self._scores(image.transpose(1, 2).to(self.query1.weight.dtype), mask, output["critical"])

    def _scores(self, rows: Tensor, mask: Tensor | None, critical: Tensor) -> Tensor:
        """Attention before softmax for given critical instances ``[b, c]``: ``[b, c, n]``, ``-inf`` on padding."""
        queries = self._query(rows)
        # Asked anew: the gradient of a choice among all queries would be as large as they are.
        asked = self._query(rows.gather(1, critical[:, :, None].expand(-1, -1, rows.shape[2])))
        scores = exact_matmul(asked, queries.transpose(1, 2)) * queries.shape[2] ** -0.5
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    def _query(self, rows: Tensor) -> Tensor:
        return torch.tanh(self.query2(torch.relu(self.query1(rows))))

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        if isinstance(chunks, Iterator):
            raise ValueError("DSMIL reads a bag twice: pass a list or a dataset of chunks, not a generator")
        bag, scores, evidence, critical = self._stream(lambda: check_chunks(chunks, self.instances.weight.device))
        return self._answer(bag[None], scores[None], evidence[None], critical[None])

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Bag by bag over the real instances, in chunks of them; without gradients."""
        parts: list[tuple[Tensor, ...]] = []
        for index, rows in enumerate(image.mT):
            if mask is None:
                parts.append(self._stream(partial(split_rows, rows)))
                continue
            places = mask[index].nonzero().flatten()
            bag, *columns, critical = self._stream(partial(split_rows, rows[places]))
            wide = [among_padding(part, mask[index]) for part in columns]
            parts.append((bag, *wide, places[critical]))
        return self._answer(*(torch.stack(part) for part in zip(*parts, strict=True)))

    @torch.jit.unused
    def _stream(self, read: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bag ``[c, d]``, attention and class evidence before softmax ``[c, n]`` and the critical instances ``[c]``.

        ``read`` starts the chunks ``[m, d]`` anew.
        """
        weight = self.instances.weight
        exact = exact_dtype(weight.dtype)
        evidence = torch.empty(self.num_classes, 65536, dtype=exact, device=weight.device)
        best = torch.full((self.num_classes,), -torch.inf, dtype=exact, device=weight.device)
        suspects = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        count = 0
        for rows in read():
            part = self._evidence(rows[None].to(weight.dtype))[0]
            highest, place = part.max(dim=1)
            suspects = torch.where((highest > best)[:, None], rows[place].to(weight.dtype), suspects)
            best = torch.maximum(best, highest)
            evidence = write_columns(evidence, count, part)
            count += len(rows)
        pool = RunningPool(self.num_classes, weight.shape[1], exact, weight.device)
        asked = self._queries(suspects)
        for rows in read():
            rows = rows.to(weight.dtype)
            pool.add(exact_matmul(asked, self._queries(rows).T) * asked.shape[1] ** -0.5, rows)
        evidence = evidence[:, :count].clone()
        return *pool.result(), evidence, evidence.argmax(dim=1)

    @torch.jit.unused
    def _queries(self, rows: Tensor) -> Tensor:
        dtype = compute_dtype(self.query1.weight)
        with torch.autocast(rows.device.type, enabled=False):
            hidden = torch.addmm(self.query1.bias.to(dtype), rows.to(dtype), self.query1.weight.T.to(dtype)).relu_()
            return torch.addmm(self.query2.bias.to(dtype), hidden, self.query2.weight.T.to(dtype)).tanh_()

    def _evidence(self, rows: Tensor) -> Tensor:
        """Class evidence ``[b, c, n]`` of ``rows`` ``[b, n, d]``."""
        return exact_matmul(self.instances.weight, rows.transpose(1, 2)) + self.instances.bias[:, None]

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The same in plain operations on the whole batch: for training, TorchScript, traces and ONNX."""
        rows = image.transpose(1, 2).to(self.instances.weight.dtype)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        evidence = self._evidence(rows)
        if mask is not None:
            evidence = evidence.masked_fill(~mask[:, None], -float("inf"))
        critical = evidence.argmax(dim=2)
        scores = self._scores(rows, mask, critical)
        return self._answer(exact_matmul(torch.softmax(scores, dim=2), rows), scores, evidence, critical)

    def _answer(self, bag: Tensor, scores: Tensor, evidence: Tensor, critical: Tensor) -> dict[str, Tensor]:
        bag = bag.flatten(1)
        attention = torch.softmax(scores, dim=2)
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag,
            "instance_logits": evidence,
            "instance_scores": attention,
            "critical": critical,
        }

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor]) -> DSMIL:
        """A DSMIL checkpoint with the released default's two-layer query and no layer before the pooling.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = {}
        for name, tensor in check_tensors(state_dict).items():
            for theirs, ours in REFERENCE_NAMES.items():
                name = name.replace(theirs, ours)
            parameters[name] = tensor.float()
        num_classes, in_channels = (size_of(parameters, "instances.weight", axis) for axis in (0, 1))
        network = cls(in_channels, num_classes, size_of(parameters, "query1.weight", 0))
        if "classifier.weight" in parameters:
            parameters["classifier.weight"] = parameters["classifier.weight"].flatten(1)
        load_reference(network, parameters)
        return network
