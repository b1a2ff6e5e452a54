"""Several networks of one design that answer as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_mil.networks import instance_scores
from monai_mil.training.method import build_network

_MEANS = ("attention", "heatmap", "threshold")


class Ensemble(nn.Module):
    """The mean of the members' probabilities, as logits; their maps are averaged too.

    Where the members answer a bag chunk by chunk, so does the ensemble: its ``pool_chunks`` hands every chunk to all of
    them, so that a slide is read and encoded once.

    Args:
        member: what a config's ``network_def`` says of one of them.
        count: how many there are; each has weights of its own, ``members.<number>.`` in the state dict.
        exclusive: the outputs are classes one of which is true, for a softmax; else each is a label of its own, for a
            sigmoid.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import Ensemble
        >>> ensemble = Ensemble(ABMIL(in_channels=8, num_classes=2), count=3, exclusive=True).eval()
        >>> output = ensemble(torch.randn(1, 8, 5), return_dict=True)
        >>> sorted(output), len(ensemble.members)
        (['attention', 'instance_scores', 'logits'], 3)
    """

    def __init__(self, member: nn.Module | Callable[[], nn.Module], count: int, exclusive: bool) -> None:
        super().__init__()
        first = build_network(member)
        self.members = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(count - 1))])
        self.exclusive = exclusive
        if hasattr(first, "pool_chunks"):
            self.pool_chunks = self._pool_chunks

    def forward(
        self, image: Tensor, mask: Tensor | None = None, return_dict: bool = False, **further: Any
    ) -> Tensor | dict[str, Tensor]:
        """Logits ``[b, c]``, or with ``return_dict`` also the maps; see :class:`monai_mil.networks.MILNetwork`."""
        output = self._mean([member(image, mask, return_dict=True, **further) for member in self.members])
        return output if return_dict else output["logits"]

    def _pool_chunks(self, chunks: Iterable[Tensor | np.ndarray], **further: Any) -> dict[str, Tensor]:
        """See :meth:`monai_mil.networks.ChunkedNetwork.pool_chunks`; a thread a member waits for the next chunk."""
        waiting: list[Queue[Tensor | np.ndarray | None]] = [Queue(maxsize=1) for _ in self.members]
        with ThreadPoolExecutor(len(self.members)) as threads:
            answers = [
                threads.submit(_pool, member, queue, torch.is_grad_enabled(), further)
                for member, queue in zip(self.members, waiting, strict=True)
            ]
            try:
                for chunk in chunks:
                    for queue in waiting:
                        queue.put(chunk)
            finally:
                for queue in waiting:
                    queue.put(None)
            return self._mean([answer.result() for answer in answers])

    def _mean(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        prob = torch.stack([self._probabilities(output) for output in outputs]).mean(dim=0)
        logits = torch.log(prob) if self.exclusive and prob.shape[1] > 1 else torch.logit(prob)
        means = {key: _mean(outputs, key) for key in _MEANS if key in outputs[0]}
        if means or "instance_scores" in outputs[0]:
            means["instance_scores"] = torch.stack([instance_scores(output) for output in outputs]).mean(dim=0)
        return {"logits": logits, **means}

    def _probabilities(self, output: dict[str, Tensor]) -> Tensor:
        if "prob" in output:
            prob = output["prob"].double()
        else:
            logits = output["logits"].double()
            prob = torch.softmax(logits, dim=1) if self.exclusive and logits.shape[1] > 1 else torch.sigmoid(logits)
        return prob.clamp(1e-12, 1 - 1e-12)


def _pool(
    member: Any, queue: Queue[Tensor | np.ndarray | None], with_gradient: bool, further: dict[str, Any]
) -> dict[str, Tensor]:
    """One member's answer for the chunks that come; whether gradients are followed is a thread's own matter."""
    chunks = _until_none(queue)
    try:
        with torch.set_grad_enabled(with_gradient):
            return member.pool_chunks(chunks, **further)
    finally:
        for _ in chunks:  # after an error nobody waits for room in the queue
            pass


def _until_none(queue: Queue[Tensor | np.ndarray | None]) -> Iterator[Tensor | np.ndarray]:
    while (chunk := queue.get()) is not None:
        yield chunk


def _mean(outputs: Sequence[dict[str, Tensor]], key: str) -> Tensor:
    return torch.stack([output[key] for output in outputs]).mean(dim=0)
