"""The same small work again and again on a GPU, which would wait for Python most of the time: as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Work = Callable[[int, Tensor], Tensors]
"""From a size and the bag of every network, all of that size, to one result of every network, ``[folds, ..]`` each."""


class Graphs:
    """One graph for every size of bag, captured when the size first comes; all networks take part in all of them.

    Args:
        work: on the GPU, with no word to the CPU.
        results: what ``work`` gives, changed in place; a network whose bag is of another size keeps its own.
    """

    def __init__(self, work: Work, results: Tensors) -> None:
        self.work = work
        self.results = results
        self.bags = torch.zeros(len(next(iter(results.values()))), dtype=torch.int64, device="cuda")
        self.here = torch.zeros_like(self.bags, dtype=torch.bool)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]

    def replay(self, size: int, models: Any, bags: Tensor) -> None:
        """Do the work of some networks for their bags, which are on the CPU; the others do it in vain for one of these.

        Args:
            size: of the bags.
            models: indices of the networks or a slice of them, ``k`` in all.
            bags: ``[k]``.
        """
        every, here = torch.full(self.bags.shape, int(bags[0])), torch.zeros(self.here.shape, dtype=torch.bool)
        every[models], here[models] = bags, True
        self.bags.copy_(every.pin_memory(), non_blocking=True)
        self.here.copy_(here.pin_memory(), non_blocking=True)
        if size not in self.graphs:
            self.graphs[size] = self._capture(size)
        self.graphs[size].replay()

    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is set up at the first use must not be a part of the graph
            self.work(size, self.bags)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self._fill(size)
        return graph

    def _fill(self, size: int) -> None:
        for name, value in self.work(size, self.bags).items():
            here = self.here.view(-1, *[1] * (value.ndim - 1))
            self.results[name].copy_(torch.where(here, value, self.results[name]))
