"""The ASGI application of a server: ``--uvicorn_app monai_mil.label.server:app``. Needs MONAI Label.

Around MONAI Label's own it does four things: a JSON body without a Content-Type, as QuPath's plugin sends it, gets one;
inference runs in threads, so that others are answered meanwhile; it is known who asks; logs name no patient.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import sha256
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from monailabel.app import app as monailabel_app
from monailabel.interfaces.utils.app import app_instance

from monai_mil.label.annotator import CALLER

Scope = MutableMapping[str, Any]
_JSON = (b"content-type", b"application/json")
_SLOW = ("/infer/", "/activelearning/", "/datastore/label")
_CHATTY = ("monailabel", "ignite", "monai_mil.bags", "monai_mil.embedding", "timeloop")


class Wrapper:
    """Names the content type of bodies that have none, and notes who asks.

    Args:
        inner: MONAI Label's application.
    """

    def __init__(self, inner: Callable[..., Awaitable[None]]) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            names = {name.lower() for name, _ in scope["headers"]}
            if b"content-type" not in names and scope["method"] in ("POST", "PUT"):
                scope = {**scope, "headers": [*scope["headers"], _JSON]}
            client = scope.get("client")
            CALLER.set(str(client[0]) if client else "")
        await self.inner(scope, receive, send)


def in_threads(application: FastAPI) -> None:
    """Let the routes that take long run beside the others; MONAI Label's block them all."""
    for index, route in enumerate(application.router.routes):
        if isinstance(route, APIRoute) and route.path.startswith(_SLOW) and inspect.iscoroutinefunction(route.endpoint):
            application.router.routes[index] = APIRoute(
                route.path,
                _blocking(route.endpoint),
                methods=route.methods,
                name=route.name,
                include_in_schema=route.include_in_schema,
                summary=route.summary,
                tags=route.tags,
                responses=route.responses,
            )


def _blocking(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function that does what a coroutine does which never waits; its user, where one signed in, is noted."""

    def call(**arguments: Any) -> Any:
        user = getattr(arguments.get("user"), "username", "")
        if user and user != "admin":  # what MONAI Label calls everybody as long as nobody signs in
            CALLER.set(user)
        return asyncio.run(endpoint(**arguments))

    call.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    call.__name__ = endpoint.__name__
    return call


class Pseudonyms(logging.Formatter):
    """A formatter that writes a digest in place of every image's name and file name.

    Args:
        inner: what formats the line otherwise.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()
        self._names: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def format(self, record: logging.LogRecord) -> str:
        """The line, without names."""
        text = self.inner.format(record)
        pattern = self._known()
        return text if pattern is None else pattern.sub(lambda found: f"image-{_digest(found[0])}", text)

    def _known(self) -> re.Pattern[str] | None:
        names = frozenset(known_names())
        if names != self._names:
            longest = sorted(names, key=len, reverse=True)
            self._names, self._pattern = names, re.compile("|".join(map(re.escape, longest))) if names else None
        return self._pattern


def known_names() -> set[str]:
    """Names of images and of their files and folders below the studies."""
    from monailabel.interfaces.utils import app as instances

    names: set[str] = set()
    for instance in instances.apps.values():
        images = instance.project.images
        for image in images.known:
            below = image.path.relative_to(images.folder).parts if image.path.is_relative_to(images.folder) else ()
            names |= {image.name, image.path.name, image.path.stem, *below}
    return {name for name in names if len(name) > 2}


def keep_names_out_of_logs() -> None:
    """Quiet what writes whole requests into the log, and put digests in place of images' names in the rest."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for each in loggers for handler in each.handlers}:
        if not isinstance(handler.formatter, Pseudonyms):
            handler.setFormatter(Pseudonyms(handler.formatter))


def _digest(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:8]


def wrapped() -> Wrapper:
    """The application that uvicorn serves."""
    in_threads(monailabel_app)
    keep_names_out_of_logs()
    return Wrapper(monailabel_app)


app = wrapped()
__all__ = ["app", "app_instance"]
