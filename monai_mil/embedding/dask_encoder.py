"""The encoder on every Dask worker: it comes by name, or is sent to those there are and to those that come later."""

from __future__ import annotations

import uuid
from functools import lru_cache
from typing import TYPE_CHECKING

from distributed import Client, WorkerPlugin, get_worker

from monai_mil.encoders import get_encoder

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

_TIMES_SENT = 5
_load = lru_cache(maxsize=1)(get_encoder)


class _Carrier(WorkerPlugin):
    """Keeps an encoder within a worker; the scheduler hands it to every worker that starts."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder


def send_encoder(client: Client, encoder: Encoder) -> str:
    """Send an encoder to all workers, those to come included; returns what :func:`encoder_here` finds it by.

    Raises:
        OSError: workers were lost again and again meanwhile.
    """
    name = f"monai-mil-encoder-{uuid.uuid4().hex}"
    for left in reversed(range(_TIMES_SENT)):
        try:
            client.register_plugin(_Carrier(encoder), name=name)
            return name
        except OSError:  # of a worker that is lost just now; the scheduler keeps the encoder all the same
            if not left:
                raise
    raise AssertionError


def encoder_here(name: str, device: str) -> Encoder:
    """The encoder that was sent as ``name``, else the one that is called so, loaded once."""
    carrier = get_worker().plugins.get(name)
    return carrier.encoder if isinstance(carrier, _Carrier) else _load(name, device=device)
