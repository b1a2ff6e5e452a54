"""HDMIL's second stage: a light network that screens tiles by their small pictures (Dong et al., CVPR 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

import torch
from torch import Tensor, nn

from monai_mil.networks.contract import MILNetwork, check_bag, exact_dtype, exact_matmul
from monai_mil.networks.graph import evaluating
from monai_mil.networks.hdmil import HDMIL


class LIPN(MILNetwork):
    """Says by a tile's picture at low magnification whether a frozen ``HDMIL`` is to see its features at all.

    The instances' features ``x_i`` are followed by their pictures ``u_i``, ``[3, side, side]`` in one row, as
    ``PixelsAsFeaturesd`` sets them. A convolutional network gives ``g_ci`` of every class and picture, and an instance
    is kept for a class where ``g_ci > 0``, or, where there is none, for the highest. The teacher's attention over the
    kept instances, ``a_c = softmax(s_c)``, makes its answer. ``ScreeningDistillation`` teaches ``g`` which instances
    the teacher keeps when it sees all; nothing else is trained. :meth:`answer_screened` never asks for the features of
    what no class keeps.

    The picture network is the released program's, MobileNetV4's first blocks narrowed to 64 channels, with two strides
    of 2 and the convolution behind the pooling's normalisation left out, so that pictures of 16 pixels and bags of one
    instance have something to normalise over. There the teacher has dropout while it teaches; here it has none.

    The output holds ``logits``, ``attention``, ``attention_logits``, ``-inf`` where an instance is not kept, ``bag``
    and ``instance_scores`` as ``HDMIL``, ``screen_logits`` and in training ``teacher_kept``, both
    ``[b, c, n]``.

    Args:
        teacher: trained; its parameters are frozen.
        side: of a picture in pixels, at least 16.

    Raises:
        ValueError: pictures are too small.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import HDMIL, LIPN
        >>> teacher = HDMIL(in_channels=16, num_classes=2, hidden_dim=32)
        >>> network = LIPN(teacher).eval()
        >>> output = network(torch.randn(1, 16 + 3 * 16 * 16, 100), return_dict=True)
        >>> seen = output["screen_logits"]
        >>> bool(((output["attention"] > 0) <= ((seen > 0) | (seen == seen.amax(dim=2, keepdim=True)))).all())
        True
    """

    def __init__(self, teacher: HDMIL, side: int = 16) -> None:
        super().__init__(teacher.num_classes)
        if side < 16:
            raise ValueError(f"side must be at least 16 pixels, got {side}")
        self.side = side
        self.in_channels = teacher.hidden.in_features
        self.teacher = teacher.requires_grad_(False).eval()
        self.screen = nn.Sequential(
            *_convolution(3, 16, 3, stride=2),
            *_convolution(16, 24, 1),
            _ExtraDepthwise(24, 48, 5),
            _ExtraDepthwise(48, 64, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 64),
            nn.ReLU(),
        )
        self.decide = nn.Linear(64, teacher.num_classes)

    def train(self, mode: bool = True) -> Self:
        """Switch all but the teacher, which always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        self._check_width(image)
        screen = self._screen(image[:, self.in_channels :], mask)
        image = image[:, : self.in_channels]
        if mask is not None:
            image = image.masked_fill(~mask[:, None], 0.0)
        rows = self.teacher._rows(image)
        scores = self.teacher.attention(rows, mask)
        output = self._answer(rows, scores, screen)
        if self.training:
            output["teacher_kept"] = (self.teacher._screened(scores) > -float("inf")).to(scores.dtype)
        return output

    @torch.jit.unused
    def answer_screened(
        self, pictures: Iterable[Tensor], features: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Evaluate one slide of which only the tiles that are kept are encoded.

        Args:
            pictures: of all tiles, in chunks ``[m, 3 * side^2]`` of any floating type.
            features: gives those of some tiles, ``[k, d]``, for their numbers, int64 ``[k]``.

        Returns:
            The output of a batch of one bag, as from ``forward(..., return_dict=True)`` on all features, and the
            numbers of the tiles that were asked for.

        Raises:
            ValueError: there is no tile, or a feature is not finite.
        """
        with evaluating(self):
            device = self.teacher.hidden.weight.device
            seen = [self._screen(check_bag(chunk.to(device).T[None], None), None) for chunk in pictures]
            if not seen:
                raise ValueError("a slide without a tile cannot be screened")
            screen = torch.cat(seen, dim=2)
            kept = _kept(screen)[0].any(dim=0).nonzero()[:, 0]
            image = check_bag(features(kept).to(device).T[None], None)
            rows = self.teacher._rows(image)
            output = self._answer(rows, self.teacher.attention(rows, None), screen[:, :, kept])
            whole: dict[str, Tensor] = {}
            for key, value in output.items():
                if key in ("attention", "attention_logits", "instance_scores"):
                    empty = -float("inf") if key == "attention_logits" else 0.0
                    value = value.new_full(screen.shape, empty).index_copy(2, kept, value)
                whole[key] = value
            whole["screen_logits"] = screen
        return whole, kept

    def _check_width(self, image: Tensor) -> None:
        if image.shape[1] != self.in_channels + 3 * self.side * self.side:
            raise ValueError(
                f"instances must be {self.in_channels} features and a picture of 3 x {self.side} x {self.side}, "
                f"got {image.shape[1]} channels"
            )

    def _screen(self, pictures: Tensor, mask: Tensor | None) -> Tensor:
        """``g`` ``[b, c, n]``, ``-inf`` on padding, which no normalisation has seen."""
        weight = self.decide.weight
        b, n = pictures.shape[0], pictures.shape[2]
        pictures = pictures.transpose(1, 2).to(weight.dtype).reshape(b, n, 3, self.side, self.side)
        if mask is None or not self.training:
            logits = self.decide(self.screen(pictures.flatten(0, 1)))
            logits = logits.reshape(b, n, self.num_classes).transpose(1, 2)
            logits = logits.to(exact_dtype(logits.dtype))
            return logits if mask is None else logits.masked_fill(~mask[:, None], -float("inf"))
        real = self.decide(self.screen(pictures[mask]))
        real = real.to(exact_dtype(real.dtype))
        whole = real.new_full((b, n, self.num_classes), -float("inf"))
        return whole.masked_scatter(mask[:, :, None], real).transpose(1, 2)

    def _answer(self, rows: Tensor, scores: Tensor, screen: Tensor) -> dict[str, Tensor]:
        """The teacher's answer from the instances that are kept for a class."""
        scores = scores.masked_fill(~_kept(screen), -float("inf"))
        attention = torch.softmax(scores, dim=2)
        output = self.teacher._answer(exact_matmul(attention, rows), attention, scores)
        output["screen_logits"] = screen
        return output

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        teacher, (width,) = HDMIL.contract_example()
        assert isinstance(teacher, HDMIL)
        network = LIPN(teacher)
        with torch.no_grad():
            network.decide.bias.add_(1.0)  # no rounding decides who is kept: all are
        return network, (width + 3 * 16 * 16,)


def _kept(screen: Tensor) -> Tensor:
    """Which instances each class keeps, bool ``[b, c, n]``."""
    return (screen > 0) | (screen == screen.amax(dim=2, keepdim=True))


def _convolution(ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride, normalised over the batch, and ReLU."""
    convolution = nn.Conv2d(ins, outs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outs), nn.ReLU()]


class _ExtraDepthwise(nn.Sequential):
    """MobileNetV4's universal inverted bottleneck with both depthwise convolutions, of twice the width and stride 2."""

    def __init__(self, ins: int, outs: int, kernel: int) -> None:
        wide = 2 * ins
        super().__init__(
            *_convolution(ins, ins, kernel, groups=ins)[:2],
            *_convolution(ins, wide, 1),
            *_convolution(wide, wide, kernel, stride=2, groups=wide),
            *_convolution(wide, outs, 1)[:2],
        )
