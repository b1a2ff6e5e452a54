"""Whether a network runs as plain Python or becomes a graph, which must fit bags of other sizes too.

Plain Python goes chunk by chunk, in steps that have gradients of their own; a graph takes plain operations on the whole
batch. A network chooses by ``if torch.jit.is_scripting() or is_recorded():``, whose first half must stand there in
full: TorchScript compiles what follows unless it sees that call.
"""

from __future__ import annotations

import torch


def is_recorded() -> bool:
    """Whether a trace, ``torch.compile`` or an export records what runs: a loop would be that of one bag's size.

    False in TorchScript, which keeps loops.
    """
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
