"""Who is asking: the signed-in user, else what the client calls itself, else where it asks from."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Whom the server sees: a user's name, or the address that a request comes from."""


def annotator_of(params: Mapping[str, Any]) -> str:
    """Who sent a request.

    Args:
        params: the request's own; ``annotator``, ``user`` or ``client_id`` say it.
    """
    said = (params.get(name) for name in ("annotator", "user", "client_id"))
    name = next((str(name) for name in said if name), CALLER.get())
    return name.encode("utf-8", "replace").decode()
