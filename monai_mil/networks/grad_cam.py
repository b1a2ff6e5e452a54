"""Grad-CAM (Selvaraju et al., ICCV 2017): heatmaps of any network, a baseline for those a network gives itself.

Activations ``A_k`` of a layer, one row a tile or token; weights ``w_k``, the mean over all tiles and tokens of the bag
of ``d y / d A_k``, where ``y`` is the network's answer for a class: its ``prob`` where it gives one, else its logit.
The map is ``relu(sum_k w_k A_k)``, divided by its maximum over the bag.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from monai_mil.networks.blocks import TileBag, among_padding, instance_mask
from monai_mil.networks.contract import MILNetwork
from monai_mil.networks.insight import INSIGHT

_LAYERS = {"INSIGHT": "tiles.projection", "ABMIL": "gates:input", "CLAM_SB": "gates:input", "CLAM_MB": "gates:input"}
_BAG = "input"


def grad_cam(
    network: MILNetwork,
    image: Tensor,
    mask: Tensor | None = None,
    *,
    layer: str | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Grad-CAM of every class of every bag.

    :class:`INSIGHT` is asked chunk by chunk: memory is that of ``chunk_instances`` tiles and the maps, and the bag,
    which may lie in a mapped file, is read three times. Other networks hold the activations of a whole bag.

    Args:
        network: in evaluation mode.
        image: ``[b, d, n]`` or ``[b, d, n, h, w]``.
        mask: True where an instance ``[b, n]`` or, for INSIGHT, a token ``[b, n, h, w]`` is real; None if all are.
        layer: a layer's name, for its output, or ``"<name>:input"`` for its input; rows ``[1, n, k]`` or maps
            ``[n, k, h, w]``. ``"input"`` is the bag itself, the features that the encoder gave, whatever the network.
            None takes INSIGHT's projection ``tiles.projection`` and ABMIL's and CLAM's rectified hidden rows
            ``gates:input``.
        scale: of an image of codes, for INSIGHT.
        offset: likewise.

    Returns:
        ``[b, c, n]`` or ``[b, c, n, h, w]`` in [0, 1], 0 on padding and where nothing speaks for the class.

    Raises:
        ValueError: there is no such layer, or it gives no row for every instance.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL, grad_cam
        >>> network = ABMIL(in_channels=16, num_classes=2).eval()
        >>> list(grad_cam(network, torch.randn(1, 16, 100)).shape)
        [1, 2, 100]
    """
    name = layer or _LAYERS.get(type(network).__name__)
    if name is None:
        raise ValueError(f"name the layer of {type(network).__name__} that Grad-CAM is to look at")
    with torch.enable_grad():
        if isinstance(network, INSIGHT):
            return _of_insight(network, image, mask, name, scale, offset)
        cams = []
        for index in range(image.shape[0]):
            bag = image[index : index + 1]
            real = None if mask is None else mask[index]
            cam = _of_bag(network, bag if real is None else bag[:, :, real], name)
            if real is not None:
                cam = among_padding(cam.movedim(1, -1), real, 0.0).movedim(-1, 1)
            cams.append(cam)
        return torch.stack(cams)


def _of_bag(network: MILNetwork, image: Tensor, layer: str) -> Tensor:
    """The maps ``[c, n(, h, w)]`` of one bag of real instances ``[1, d, n(, h, w)]``."""
    # Networks with a fused eager form pass by their layers in it.
    plain = getattr(network, "_whole", None)
    if layer == _BAG:
        bag = image.as_subclass(Tensor).detach().clone().requires_grad_()
        answer = _answer(network(bag, return_dict=True) if plain is None else plain(bag, None))
        weights = torch.stack([_summed(gradient[0].transpose(0, 1)) for gradient in _gradients(answer, bag)])
        return _normalised(_weighted(weights, bag[0].detach().transpose(0, 1)))
    with _kept(network, layer) as found:
        answer = _answer(network(image, return_dict=True) if plain is None else plain(image, None))
    activation = _only(found, layer)
    rows = activation[0] if activation.dim() == 3 else activation
    if rows.dim() not in (2, 4) or len(rows) != image.shape[2]:
        raise ValueError(
            f"layer '{layer}' gives {list(activation.shape)}, Grad-CAM needs [1, n, k] or [n, k, h, w] with n = "
            f"{image.shape[2]} instances"
        )
    weights = torch.stack([_summed(gradient.reshape(rows.shape)) for gradient in _gradients(answer, activation)])
    return _normalised(_weighted(weights, rows.detach()))


def _answer(output: Any) -> Tensor:
    """The network's answer for every class of the one bag, ``[c]``."""
    return output["prob"][0] if "prob" in output else output["logits"][0]


def _gradients(answer: Tensor, activation: Tensor) -> list[Tensor]:
    return [torch.autograd.grad(value, activation, retain_graph=True)[0] for value in answer]


def _of_insight(
    network: INSIGHT, image: Tensor, mask: Tensor | None, layer: str, scale: Tensor | None, offset: Tensor | None
) -> Tensor:
    with torch.no_grad():
        output: Any = network(image, mask, return_dict=True, scale=scale, offset=offset)
    heatmap = output["heatmap"].requires_grad_()
    # A class's probability depends on its own map only: one gradient tells of all.
    seeds = torch.autograd.grad(network._answer(heatmap, output["detection_logits"], mask)["prob"].sum(), heatmap)[0]
    cams, instances = torch.zeros_like(heatmap), instance_mask(mask)
    for index, tiles in enumerate(image.as_subclass(Tensor).transpose(1, 2)):
        real = None if instances is None else instances[index].nonzero()[:, 0]
        codes = () if scale is None or offset is None else (scale[index], offset[index])
        bag = TileBag(tiles, next(network.parameters()), real, *codes)
        chunk = network.tiles_at_once()
        parts = [bag.part(start, min(start + chunk, bag.count)) for start in range(0, bag.count, chunk)]
        weights = torch.stack([_chunk_weights(network, bag.take(p), seeds[index][:, p], layer) for p in parts]).sum(0)
        for part in parts:
            with torch.no_grad(), _kept(network, layer) as found:
                network._token_maps(bag.take(part))
            cams[index, :, part] = _weighted(weights, _only(found, layer)).to(cams)
    if mask is not None and mask.dim() == 4:
        cams = cams.masked_fill(~mask[:, None].to(cams.device), 0.0)
    return torch.stack([_normalised(cam) for cam in cams.detach()])


def _chunk_weights(network: INSIGHT, tiles: Tensor, seeds: Tensor, layer: str) -> Tensor:
    """A chunk's share of the channel weights ``[c, k]``, from the gradient ``[c, m, h, w]`` at its heatmap."""
    with _kept(network, layer) as found:
        heatmap = network._token_maps(tiles)[0]
    activation = _only(found, layer)
    weights = []
    for index, seed in enumerate(seeds):
        gradient = torch.autograd.grad(heatmap[:, index], activation, seed, retain_graph=True)[0]
        weights.append(_summed(gradient))
    return torch.stack(weights)


@contextmanager
def _kept(network: MILNetwork, layer: str) -> Iterator[list[Tensor]]:
    """What the layer gives, or takes, inside the block; it asks for gradients even in a frozen network."""
    name, _, place = layer.partition(":")
    try:
        module = network.get_submodule(name)
    except AttributeError:
        known = ", ".join(name for name, _ in network.named_modules() if name)
        raise ValueError(f"{type(network).__name__} has no layer '{name}'; it has {known}") from None
    found: list[Tensor] = []

    def keep(value: Tensor) -> None:
        if torch.is_grad_enabled() and not value.requires_grad:
            value.requires_grad_()
        found.append(value)

    if place == "input":
        hook = module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
    else:
        hook = module.register_forward_hook(lambda _, inputs, output: keep(output))
    try:
        yield found
    finally:
        hook.remove()


def _only(found: list[Tensor], layer: str) -> Tensor:
    if len(found) != 1:
        raise ValueError(f"layer '{layer}' was used {len(found)} times for a bag; Grad-CAM needs one that is used once")
    return found[0]


def _summed(gradient: Tensor) -> Tensor:
    """Sum ``[k]`` over the rows or tokens; a mean's divisor would not show in a map divided by its maximum."""
    kept = gradient.double()
    return kept.sum(dim=0) if kept.dim() == 2 else kept.sum(dim=(0, 2, 3))


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """``relu(sum_k w_k A_k)``: ``[c, n(, h, w)]`` of weights ``[c, k]`` and activations ``[n, k(, h, w)]``."""
    return torch.einsum("ck,nk...->cn...", weights.to(activation), activation).relu()


def _normalised(cam: Tensor) -> Tensor:
    """Every class's map divided by its maximum, 0 where that is 0."""
    highest = cam.flatten(1).amax(dim=1).reshape(-1, *[1] * (cam.dim() - 1))
    return cam / torch.where(highest > 0, highest, 1.0)
