"""A network over the tiles of one bag, a chunk at a time, forwards and backwards.

Nothing but the two maps is kept between both directions: the backward pass reads every chunk again and runs the
network on it once more. The memory of a training step is that of one chunk, whatever the bag's size, and the bag itself
may lie in a file (a memory-mapped tensor of any floating type, or of codes): it is read twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_mil.networks.contract import exact_dtype


@dataclass(frozen=True, eq=False)
class TileBag:
    """The tiles of one bag, in memory or in a mapped file, and what makes a network's input of some of them."""

    tiles: Tensor
    """``[n, d, h, w]``, any strides, floating type and device."""
    like: Tensor
    """The network works on its device and in its type."""
    real: Tensor | None = None
    """Indices of the real tiles, int64 ``[r]``; None if all are."""
    scale: Tensor | None = None
    """Of tiles stored as codes, ``[d]``."""
    offset: Tensor | None = None
    """Likewise; a feature is ``offset + scale * code``."""

    @property
    def count(self) -> int:
        """Number of real tiles."""
        return len(self.tiles) if self.real is None else len(self.real)

    def part(self, start: int, stop: int) -> slice | Tensor:
        """Where the real tiles from ``start`` to ``stop`` stand in the bag."""
        return slice(start, stop) if self.real is None else self.real[start:stop]

    def take(self, part: slice | Tensor) -> Tensor:
        """Some tiles, ready for the network; gathered as rows of tokens, which they are in memory."""
        if isinstance(part, slice):
            taken = self.tiles[part]
        else:
            taken = self.tiles.permute(0, 2, 3, 1)[part.to(self.tiles.device)].permute(0, 3, 1, 2)
        return decode_tiles(taken, self.like, self.scale, self.offset)


def decode_tiles(tiles: Tensor, like: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """Tiles ``[m, d, h, w]`` as they are stored, on the device and in the type of ``like``.

    With ``scale`` and ``offset``, ``[d]`` or ``[m, d]``, stored are codes and a feature is ``offset + scale * code``.
    """
    # Cast behind the move: what is stored in one or two bytes travels as such.
    moved = tiles.to(like.device).to(like.dtype)
    if scale is None or offset is None:
        return moved
    return offset.to(moved)[..., None, None] + scale.to(moved)[..., None, None] * moved


def map_tiles(
    network: Callable[[Tensor], tuple[Tensor, Tensor]], module: nn.Module, bag: TileBag, chunk: int
) -> list[Tensor]:
    """Run a network over the real tiles of one bag.

    Args:
        network: gives two maps ``[m, c, h, w]`` of tiles ``[m, d, h, w]``, each tile on its own, without chance.
        module: the owner of the parameters it uses.
        bag: the tiles.
        chunk: tiles at once; changes memory and speed, never the result.

    Returns:
        Both maps, ``[c, n, h, w]`` each, on the parameters' device, 0 where a tile is not real.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    trained = torch.is_grad_enabled() and (bag.tiles.requires_grad or len(parameters) > 0)
    if trained and bag.count > chunk:
        return list(_MapTiles.apply(network, bag, chunk, bag.tiles, *parameters))
    return _map_forward(network, bag, chunk)


def _map_forward(network: Callable[[Tensor], tuple[Tensor, Tensor]], bag: TileBag, chunk: int) -> list[Tensor]:
    maps: list[Tensor] = []
    for start in range(0, bag.count, chunk):
        part = bag.part(start, min(start + chunk, bag.count))
        answers = [answer.transpose(0, 1) for answer in network(bag.take(part))]
        if bag.count <= chunk and bag.real is None:
            return answers
        if not maps:
            maps = [answer.new_zeros(len(answer), len(bag.tiles), *answer.shape[2:]) for answer in answers]
        for whole, answer in zip(maps, answers, strict=True):
            whole[:, part] = answer
    return maps


class _MapTiles(torch.autograd.Function):
    """The differentiable form for several chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        network: Callable[[Tensor], tuple[Tensor, Tensor]],
        bag: TileBag,
        chunk: int,
        tiles: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        kind = bag.like.device.type
        # What autocast has cast without gradients must not be found again by those who need them.
        ctx.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": False,
        }
        ctx.network, ctx.chunk = network, chunk
        ctx.bag = replace(bag, tiles=tiles.new_empty(0), like=bag.like.detach())
        ctx.save_for_backward(tiles, *parameters)
        with torch.autocast(**ctx.autocast):
            return tuple(_map_forward(network, replace(bag, tiles=tiles), chunk))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_maps: Tensor) -> tuple[Tensor | None, ...]:
        tiles, *parameters = ctx.saved_tensors
        bag = replace(ctx.bag, tiles=tiles)
        grad_tiles = torch.zeros_like(tiles) if ctx.needs_input_grad[3] else None
        sums = [torch.zeros_like(parameter, dtype=exact_dtype(parameter.dtype)) for parameter in parameters]
        for start in range(0, bag.count, ctx.chunk):
            part = bag.part(start, min(start + ctx.chunk, bag.count))
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                taken = bag.take(part).detach().requires_grad_(grad_tiles is not None)
                maps = ctx.network(taken)
            inputs = parameters if grad_tiles is None else [taken, *parameters]
            seeds = [grad[:, part].transpose(0, 1) for grad in grad_maps]
            pairs = [(one, seed) for one, seed in zip(maps, seeds, strict=True) if one.requires_grad]
            grads = torch.autograd.grad([one for one, _ in pairs], inputs, [seed for _, seed in pairs])
            if grad_tiles is not None:
                grad_tiles[part] = grads[0].to(grad_tiles)
            for total, grad in zip(sums, grads[len(inputs) - len(sums) :], strict=True):
                total += grad
        return None, None, None, grad_tiles, *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))
