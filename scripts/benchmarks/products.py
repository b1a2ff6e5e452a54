"""What a step's matrix products and convolutions take alone: no step that computes them can be quicker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward"}
_PRODUCTS |= {_ATTENTION, f"{_ATTENTION}_backward"}


def products_alone(step: Callable[[], object]) -> Callable[[], None]:
    """The products of ``step`` in a row, with the layouts it gives them, on random numbers.

    Operands of one shape and layout are one tensor, so that chunks of a bag come from the cache: a lower bound.
    """
    recorder = _Recorder()
    with recorder:
        step()

    def run() -> None:
        for function, args, kwargs in recorder.calls:
            function(*args, **kwargs)

    return run


class _Recorder(TorchDispatchMode):
    """Keeps every product with operands of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []
        self._operands: dict[tuple[object, ...], Tensor] = {}

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket.__name__ in _PRODUCTS:
            named = {name: self._operand(name, value) for name, value in kwargs.items()}
            self.calls.append((function, tuple(self._operand(place, arg) for place, arg in enumerate(args)), named))
        return function(*args, **kwargs)

    def _operand(self, place: object, value: object) -> object:
        """Random numbers laid out as ``value``, one tensor for every layout and place among the operands."""

        def like(tensor: Tensor) -> Tensor:
            layout = place, tuple(tensor.shape), tensor.stride(), tensor.dtype
            if layout not in self._operands:
                drawn = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                self._operands[layout] = drawn.copy_(torch.randn(tensor.shape))
            return self._operands[layout]

        return tree_map_only(Tensor, like, value)
