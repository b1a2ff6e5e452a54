"""MHIM-MIL's consistency term: a student's bag is drawn to that of its teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.losses.required import required
from monai_mil.networks import exact_dtype


class TeacherConsistency(nn.Module):
    """``-sum_j softmax(z' / temperature)_j log softmax(z)_j`` of a teacher's bag ``z'`` and the network's ``z``.

    Mean over the bags. The softmax goes over the values of a bag vector, and no gradient reaches the teacher.

    Args:
        temperature: divides the teacher's, 0.1 in the released program.

    Raises:
        ValueError: ``temperature`` is not above 0.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import TeacherConsistency
        >>> output = {"bag": torch.zeros(1, 4), "teacher_bag": torch.tensor([[3.0, 1.0, 2.0, 0.0]])}
        >>> round(TeacherConsistency()(output, torch.tensor([1])).item(), 4)  # log 4: the student prefers nothing
        1.3863
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, at least 0.

        Args:
            output: has ``bag`` and ``teacher_bag`` ``[b, d]``, of a network in training.
            label: not read.

        Raises:
            ValueError: there is no teacher's bag.
        """
        bag, teacher = output["bag"], required(output, "teacher_bag", "it does in training").detach()
        dtype = exact_dtype(bag.dtype)
        target = (teacher.to(dtype) / self.temperature).softmax(dim=1)
        return -(target * F.log_softmax(bag.to(dtype), dim=1)).sum(dim=1).mean()
