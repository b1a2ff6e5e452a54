"""HAG-MIL's instance loss as its paper has it: the most attended instances show the bag's class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.losses.required import required
from monai_mil.losses.smooth_svm import HARD_FROM


class TopInstanceSVM(nn.Module):
    """Smooth top-1 SVM over all classes of the most attended instances, each labelled as its bag (HAG-MIL, Eq. 7).

    ``log sum_j exp(s_j + [j != y]) - s_y``, and ``max_j (s_j + [j != y]) - s_y`` where the two highest scores differ by
    ln 1000 or more; the mean over the instances, then over the bags. :class:`InstanceSmoothSVM` is what CLAM and the
    released HAG-MIL do.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import TopInstanceSVM
        >>> output = {"top_instance_logits": torch.tensor([[[0.0], [9.0]]])}  # one instance, two classes
        >>> [round(TopInstanceSVM()(output, torch.tensor([label])).item(), 4) for label in (1, 0)]
        [0.0, 10.0]
    """

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["top_instance_logits"]`` ``[b, c, k]`` for class indices ``[b]`` or ``[b, 1]``.

        Raises:
            ValueError: the network gives no such logits, or classes do not exclude each other.
        """
        top = required(output, "top_instance_logits", "use one with an instance branch and sampled above 0")
        if top.shape[1] < 2 or label.numel() != top.shape[0]:
            raise ValueError(
                f"labels {list(label.shape)} for {top.shape[0]} bags of {top.shape[1]} outputs: Eq. 7 is for two or "
                "more classes that exclude each other, one index a bag; use InstanceSmoothSVM for others"
            )
        scores = top.float().transpose(1, 2)
        known = torch.isfinite(scores).all(dim=2)
        losses = smooth_top1(torch.where(known[:, :, None], scores, 0.0), label.to(top.device).long().reshape(-1, 1))
        return (torch.where(known, losses, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()


def smooth_top1(scores: Tensor, label: Tensor) -> Tensor:
    """Smooth top-1 SVM (Berrada et al., ICLR 2018; temperature and margin 1).

    Args:
        scores: ``[..., c]``, two classes or more.
        label: the true class, int64 ``[...]``, or of a shape that is broadcast to that.

    Returns:
        ``[...]``.
    """
    truth = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, label.expand(scores.shape[:-1])[..., None], True)
    raised = scores + (~truth).to(scores.dtype)
    first, second = scores.topk(2, dim=-1).values.unbind(-1)
    highest = torch.where(first - second < HARD_FROM, raised.logsumexp(dim=-1), raised.amax(dim=-1))
    return highest - (scores * truth).sum(dim=-1)
