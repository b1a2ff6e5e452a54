"""What every MIL network accepts, refuses and returns, and every key that travels through an engine.

A network derives from :class:`MILNetwork` and implements :meth:`MILNetwork.describe`. :data:`KEYS` lists what a network
may put into its output and what loaders, transforms, inferers and losses add to it, every one of them batch-first so
that MONAI engines can decollate it. Whoever pads, samples or removes padding reads there along which axis the
instances of a key lie (:func:`instance_axis`): a key for every instance that is not listed is refused, not guessed at.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from monai_mil.networks.graph import evaluating, is_exported, is_recorded


@dataclass(frozen=True)
class Key:
    """What stands under one key of an engine's batches, outputs and cases.

    Attributes:
        shape: names of the axes of a batch: ``b`` bags, ``n`` instances, ``c`` classes, ``h`` attention heads; the
            rest are local to the key. ``...`` stands for any further axes.
        meaning: in words.
        padding: what this package writes where an instance is padding; 0 where nothing ever lies there.
    """

    shape: str
    meaning: str
    padding: float = 0.0

    @property
    def axis(self) -> int | None:
        """The instances' axis of ONE decollated case; None where the key is not one value an instance."""
        axes = self.shape.split()[1:]
        return axes.index("n") if "n" in axes else None


KEYS: Mapping[str, Key] = MappingProxyType(
    {
        # A network's output.
        "logits": Key("b c", "the answer; what the network returns unless asked for the dict"),
        "prob": Key("b c", "where the network's own answer is a probability"),
        "attention": Key("b h n", "a distribution over the real instances"),
        "attention_logits": Key("b h n", "its scores before normalisation", -torch.inf),
        "attention_share": Key(
            "b h n",
            "attention before it is brought to sum 1, where a class token took part; attention_logits is then its "
            "logarithm",
        ),
        "bag": Key("b d'", "the bag vector that is classified"),
        "screened_logits": Key("b c", "the answer from the instances that HDMIL keeps, in training"),
        "screened_bag": Key("b d'", "its bag vector"),
        "screened_share": Key("b", "share of the instances that any class keeps"),
        "screen_logits": Key("b c n", "of LIPN: above 0 where an instance's picture says to keep it", -torch.inf),
        "teacher_kept": Key("b c n", "likewise, in training: 1 where its teacher keeps the instance, else 0"),
        "tiles_read": Key("b", "how many of a slide's tiles were encoded; by embedding.ScreenSlided"),
        "teacher_bag": Key("b d'", "the bag vector of a momentum teacher, in training"),
        "class_rows": Key("b c d'", "of PSMIL in training: the hidden row that is most like each class"),
        "branch_logits": Key(
            "b t c", "what every branch, or every pseudo-bag, says by itself; -inf where a pseudo-bag is empty"
        ),
        "token_logits": Key("b t c", "what every one of ASMIL's tokens says by itself, where asked for"),
        "instance_logits": Key(
            "b c n", "class evidence of every instance; on padding some networks give other values", -torch.inf
        ),
        "top_instance_logits": Key(
            "b c k",
            "class evidence of the most attended instances, highest attention first; -inf where the bag has fewer",
        ),
        "bottom_instance_logits": Key("b c k", "likewise of the least attended, lowest attention first"),
        "level_logits": Key("b L c", "the answers of all levels of a packed bag, coarsest first; see HAGMIL"),
        "level_top_instance_logits": Key("b L c k", "top_instance_logits of every level"),
        "level_bottom_instance_logits": Key("b L c k", "bottom_instance_logits of every level"),
        "critical": Key("b c", "index of the instance that speaks most for a class"),
        "heatmap": Key("b c n y x", "class evidence of every token of every instance"),
        "threshold": Key("b c", "splits heatmap: what is strictly above is foreground"),
        "detection_logits": Key("b c n y x", "evidence of every token, of INSIGHT before its surroundings speak"),
        "instance_scores": Key("b c n", "what localisation uses, where it is none of the above"),
        # What an inferer adds to it.
        "mask": Key("b n", "True where an instance is real; present when it was given"),
        "token_mask": Key("b n y x", "True where a token is real; present when such a mask was given"),
        "anchor_logits": Key("b h n", "attention_logits of the anchor; by training.AnchorInferer", -torch.inf),
        "anchor_weight": Key("b", "0 while the anchor warms up, then 1; likewise"),
        "positions": Key("b n ...", "where the instances lie; by training.FullOutputInferer, for NormalGuidance"),
        "grad_cam": Key("b c n ...", "Grad-CAM of every class, of instances or tokens; by training.GradCAMInferer"),
        # A bag and its case, as loaders and transforms leave them.
        "image": Key("b d n ...", "features, channel first"),
        "coords": Key("b n 2", "level-0 pixels of a tile's upper-left corner; of a slice its index and 0"),
        "positions_mm": Key("b n", "position of a scan's slices along their normal"),
        "slide_index": Key("b n", "of a patient's bag, which of its slides or scans the instance is of", -1.0),
        "instance_labels": Key("b n", "1, 0 or -1, unknown, of every instance", -1.0),
        "token_labels": Key("b n ...", "the truth of every token: synthetic, or a share of voxels; by ScanTruthd"),
        "inside": Key("b n", "False where a tile of a packed bag lies beyond the slide"),
        "tissue_fraction": Key("b n", "share of a tile's area that is tissue, in a packed bag"),
        "feature_scale": Key("b d", "of an image of codes; a feature is feature_offset + feature_scale * code"),
        "feature_offset": Key("b d", "likewise"),
        "streamed": Key("b", "a network's whole output for a slide whose features were never kept, a dict of these"),
        "label": Key("b ...", "what the loss compares the answer with"),
        "slide_id": Key("b", "the slide's name"),
        "scan_id": Key("b", "the scan's name"),
        "patient_id": Key("b", "whose it is"),
        "slide_path": Key("b", "the slide's file, of bags that do not say it"),
        "series_uid": Key("b", "which series of a scan's folder to read"),
        "acquisition": Key("b", "which acquisition of a series that has several"),
        "level0_size": Key("b 2", "width and height of the slide in level-0 pixels"),
        "mpp": Key("b", "micrometres a level-0 pixel"),
        "tile_size_level0": Key("b", "edge of a tile in level-0 pixels"),
        # What an evaluation makes of the output.
        "pred": Key("b c", "the answer, as probabilities behind the postprocessing"),
        "scores": Key("b c n", "instance_scores of every network that localises; by training.UnpackOutputd"),
        "attention_center_mm": Key("b h", "mean position of each head's attention; likewise"),
        "attention_width_mm": Key("b h", "its standard deviation; likewise"),
        "risk": Key("b", "higher for an earlier event; by training.SurvivalRiskd"),
        "survival": Key("b k", "probability that the event comes after each time bin; likewise"),
        "loss": Key("", "of a training step"),
    }
)
"""Every key that travels through an engine."""


def instance_axis(key: str) -> int | None:
    """Along which axis of ONE decollated case the instances of a key lie; None where it has none.

    Raises:
        KeyError: :data:`KEYS` does not list the key.

    Examples:
        >>> from monai_mil.networks import instance_axis
        >>> instance_axis("attention"), instance_axis("coords"), instance_axis("logits")
        (1, 0, None)
    """
    if key not in KEYS:
        raise KeyError(f"no '{key}' among the keys that travel through an engine; list it in KEYS of {__name__}")
    return KEYS[key].axis


class MILNetwork(nn.Module):
    """Base of all networks: checks the bag at the door and returns one tensor or the whole output.

    A subclass implements :meth:`describe`.

    Args:
        num_classes: ``c``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> network = ABMIL(in_channels=16, num_classes=2)
        >>> image = torch.randn(2, 16, 100)
        >>> mask = torch.arange(100) < torch.tensor([[100], [60]])  # the second bag has 60 instances
        >>> torch.allclose(network(image, mask)[1:], network(image[1:, :, :60]), atol=1e-5)
        True
    """

    __constants__ = ["listed_keys"]
    listed_keys = [(name, -1 if key.axis is None else key.axis + 1, float(key.padding)) for name, key in KEYS.items()]
    """:data:`KEYS` as TorchScript can read them: name, axis of the instances in a batch or -1, and padding."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep what the network is made with, so that another of other sizes can be."""
        network = super().__new__(cls)
        network.__dict__["_made_with"] = (args, kwargs)
        return network

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @torch.jit.unused
    def arguments(self) -> dict[str, Any]:
        """What the network was made with, by the names of its constructor, defaults included."""
        args, kwargs = self.__dict__["_made_with"]
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        named: dict[str, Any] = {}
        for name, parameter in list(signature.parameters.items())[1:]:
            rest = parameter.kind is inspect.Parameter.VAR_KEYWORD
            named |= bound.arguments[name] if rest else {name: bound.arguments[name]}
        return named

    def forward(self, image: Tensor, mask: Tensor | None = None, return_dict: bool = False) -> Tensor:
        """Classify a batch of bags.

        Args:
            image: features, channel first: ``[b, d, n]`` or spatial ``[b, d, n, h, w]``.
            mask: True where an instance is real, ``[b, n]``; None if all are. What lies under False never matters.
            return_dict: return the whole output (see this module) instead of the logits; ignored in TorchScript.

        Returns:
            Logits ``[b, c]``, or the dict.

        Raises:
            ValueError: a bag has no instance, a real feature is not finite, or the shapes do not fit.
        """
        if torch.jit.is_scripting():
            return self.describe(check_bag(image, mask), mask)["logits"]
        real = mask
        if not is_recorded():
            image = check_bag(image.as_subclass(Tensor), mask)
            if mask is not None and bool(mask.all()):  # no padding: nothing must be copied for its sake
                real = None
        output = self.describe(image, real)
        if not return_dict:
            return output["logits"]
        if mask is not None:
            output["mask"] = mask
        return output  # type: ignore[return-value]

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The whole output for a checked batch; see this module for the keys."""
        raise NotImplementedError


class ChunkedNetwork(MILNetwork):
    """Base of the networks that evaluate a bag which does not fit into memory.

    A subclass implements :meth:`_answer_chunks`.

    Args:
        num_classes: ``c``.
    """

    @torch.jit.unused
    def pool_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        """Evaluate one bag that does not fit into memory, as in evaluation mode and without gradients.

        Args:
            chunks: the instances in order, ``[m, d]`` each, tensors or arrays of any floating type; a few thousand
                rows are best. They are moved to the network's device. A network that reads a bag twice (``DSMIL``)
                needs something that starts anew each time it is iterated over, not a generator.

        Returns:
            The output of a batch of one bag, as from ``forward(..., return_dict=True)``.

        Raises:
            ValueError: no row came, a feature is not finite, or the chunks can be read only once and are needed twice.
        """
        with evaluating(self):
            return self._answer_chunks(chunks)

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        """See :meth:`pool_chunks`; the chunks are not checked yet, see :func:`check_chunks`."""
        raise NotImplementedError


def check_bag(image: Tensor, mask: Tensor | None) -> Tensor:
    """Refuse what no network can answer; costs one pass over the features and no memory.

    Args:
        image: ``[b, d, n]`` or ``[b, d, n, h, w]``.
        mask: ``[b, n]``, bool, or None.

    Returns:
        ``image``, with padding that is not finite replaced by 0.

    Raises:
        ValueError: see :meth:`MILNetwork.forward`.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import check_bag
        >>> image = torch.tensor([[[1.0, torch.nan]]])
        >>> check_bag(image, torch.tensor([[True, False]]))  # the second instance is padding
        tensor([[[1., 0.]]])
    """
    check_shape(image, mask)
    if _is_finite(image.detach()):
        return image
    return _zero_padding(image, mask)


def check_shape(image: Tensor, mask: Tensor | None) -> None:
    """Raise a ValueError unless image and mask have shapes of bags with instances; reads no feature."""
    if image.dim() != 3 and image.dim() != 5:
        raise ValueError(f"a bag must be [b, d, n] or [b, d, n, h, w], got {list(image.shape)}")
    if image.shape[0] == 0 or image.shape[2] == 0:
        raise ValueError(f"a bag without instances has no prediction, got {list(image.shape)}")
    if mask is not None:
        fits = mask.dim() == 2 and mask.shape[0] == image.shape[0] and mask.shape[1] == image.shape[2]
        if mask.dtype != torch.bool or not fits:
            raise ValueError(
                f"the mask must be bool [b, n] for a bag {list(image.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        if not bool(mask.any(dim=1).all()):
            raise ValueError("a bag without instances has no prediction: a row of the mask is all False")


def _is_finite(image: Tensor) -> bool:
    if image.dtype == torch.float16:  # whose sum overflows, or would be taken of a copy in float32
        return bool(torch.isfinite(image.amax()) & torch.isfinite(image.amin()))
    return bool(torch.isfinite(image.sum()))


def _zero_padding(image: Tensor, mask: Tensor | None) -> Tensor:
    """``image`` with 0 on padding if all that is not finite lies there; reached when a plain look finds something."""
    dirty_padding = False
    for bag in range(image.shape[0]):
        for start in range(0, image.shape[2], 8192):
            instances = image[bag].detach().narrow(1, start, min(8192, image.shape[2] - start))
            finite = torch.isfinite(instances.transpose(0, 1).flatten(1)).all(dim=1)
            if mask is not None:
                if bool((finite | ~mask[bag, start : start + 8192]).all()):
                    dirty_padding = dirty_padding or not bool(finite.all())
                    continue
            elif bool(finite.all()):
                continue
            first = start + int(torch.nonzero(~finite)[0])
            raise ValueError(f"bag {bag} of the batch has features that are not finite, first in instance {first}")
    if dirty_padding and mask is not None:
        hole = ~mask[:, None, :]
        if image.dim() == 5:
            hole = hole[:, :, :, None, None]
        return image.masked_fill(hole, 0.0)
    return image


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of attention and logits for parameters of ``dtype``: float32 or better.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import exact_dtype
        >>> exact_dtype(torch.bfloat16), exact_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact_matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in float32 or better, under autocast too: sums over a bag and logits need the digits.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import exact_matmul
        >>> exact_matmul(torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(4, 1, dtype=torch.bfloat16))
        tensor([[4.]])
    """
    dtype = exact_dtype(left.dtype)
    if torch.jit.is_scripting() or is_exported():  # programs run without autocast
        return torch.matmul(left.to(dtype), right.to(dtype)).to(dtype)
    with torch.autocast(left.device.type, enabled=False):
        return torch.matmul(left.to(dtype), right.to(dtype))


def check_chunks(chunks: Iterable[Tensor | np.ndarray], device: torch.device) -> Iterator[Tensor]:
    """The chunks ``[m, d]`` of one bag, checked one by one as :func:`check_bag` does, on ``device``."""
    for chunk in chunks:
        rows = torch.as_tensor(chunk)
        check_bag(rows.T[None], None)
        yield rows.to(device)


def instance_scores(output: Mapping[str, Tensor]) -> Tensor:
    """One score of every instance for every class, whichever network gave the output: what localisation takes.

    A network's own ``instance_scores`` come first, then its ``heatmap`` (the highest token of an instance), then its
    attention, averaged over heads and the same for every class.

    Args:
        output: what a network returned with ``return_dict=True``.

    Returns:
        Scores ``[b, c, n]``, higher is more suspicious.

    Raises:
        ValueError: the output holds none of them.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import instance_scores
        >>> instance_scores({"logits": torch.zeros(1, 2), "attention": torch.tensor([[[0.75, 0.25]]])})
        tensor([[[0.7500, 0.2500],
                 [0.7500, 0.2500]]])
    """
    if "instance_scores" in output:
        return output["instance_scores"]
    if "heatmap" in output:
        return output["heatmap"].flatten(3).amax(dim=3)
    if "attention" in output:
        attention = output["attention"].mean(dim=1, keepdim=True)
        return attention.expand(-1, output["logits"].shape[1], -1)
    raise ValueError(f"nothing to localise with among the output's keys: {', '.join(sorted(output))}")
