"""How a network runs: as plain Python or as a graph, which must fit bags of other sizes too; in evaluation mode.

Plain Python goes chunk by chunk, in steps that have gradients of their own; a graph takes plain operations on the whole
batch. A network chooses by ``if torch.jit.is_scripting() or is_recorded():``, whose first half must stand there in
full: TorchScript compiles what follows unless it sees that call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def is_recorded() -> bool:
    """Whether a trace, ``torch.compile`` or an export records what runs: a loop would be that of one bag's size.

    False in TorchScript, which keeps loops.
    """
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def is_exported() -> bool:
    """Whether ``torch.export`` records what runs, as the ONNX exporter lets it: every size is a part of the graph.

    False in TorchScript.
    """
    if torch.jit.is_scripting():
        return False
    return torch.compiler.is_exporting()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module is then as it was.

    MONAI's ``eval_mode`` would put frozen parts of a network in training into training too, and importing MONAI takes
    seconds and 300 MiB that who evaluates a bag from disk does not need.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
