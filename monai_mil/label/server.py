"""The ASGI application of a server: ``--uvicorn_app monai_mil.label.server:app``. Needs MONAI Label.

Around MONAI Label's own it does five things: a JSON body without a Content-Type, as QuPath's plugin sends it, gets one;
inference runs in threads, so that others are answered meanwhile; it is known who asks; a user's error is one sentence;
weights are not replaced without their card.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.app import app as monailabel_app
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance

from monai_mil.errors import MonaiMILError
from monai_mil.label.annotator import CALLER
from monai_mil.label.datastore import status_of
from monai_mil.label.pseudonyms import keep_names_out_of_logs

Scope = MutableMapping[str, Any]
_JSON = (b"content-type", b"application/json")
_SLOW = ("/infer/", "/activelearning/", "/datastore/")
_JSON_FIELDS = {"params", "wsi", "info"}
_SAID = {"Error processing inference": "the answer has no heat, and there is no empty DICOM SEG: ask for output=image"}
_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


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
        for name in _JSON_FIELDS & set(arguments):
            _check_object(name, arguments[name])
        try:
            return asyncio.run(endpoint(**arguments))
        except HTTPException as error:
            if error.status_code == 500:  # MONAI Label's word for what a client has done wrong
                raise HTTPException(status_code=400, detail=_SAID.get(error.detail, error.detail)) from error
            raise

    call.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    call.__name__ = endpoint.__name__
    return call


def _check_object(name: str, value: Any) -> None:
    """Refuse a field of a form that must hold a JSON object and does not."""
    try:
        found = json.loads(value) if isinstance(value, str) and value else None
    except ValueError as error:
        raise HTTPException(status_code=400, detail=f"'{name}' is no JSON ({error})") from error
    if not isinstance(found, dict | None):
        raise HTTPException(status_code=400, detail=f"'{name}' is no JSON object, which looks so: {{}}")


def refuse_weights(application: FastAPI) -> None:
    """Take the place of MONAI Label's routes that write and remove a model's file and leave its card as it was."""

    def refused(model: str, _: User = _ADMIN) -> None:
        raise HTTPException(
            status_code=405,
            detail=f"weights come and go with their card: train '{model}' here, or copy model.pt and model.json of "
            f"another training into models/ of its bundle; they are served at once",
        )

    route = APIRoute("/model/{model}", refused, methods=["PUT", "DELETE"], include_in_schema=False)
    application.router.routes.insert(0, route)


def answer_in_words(application: FastAPI) -> None:
    """Answer a user's error that nobody has answered with its one sentence; MONAI Label's own too."""

    def ours(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_of(error))

    def of_monai_label(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(getattr(error, "msg", error))}, 400)

    application.add_exception_handler(MonaiMILError, ours)
    application.add_exception_handler(MONAILabelException, of_monai_label)


def wrapped() -> Wrapper:
    """The application that uvicorn serves."""
    in_threads(monailabel_app)
    refuse_weights(monailabel_app)
    answer_in_words(monailabel_app)
    keep_names_out_of_logs()
    return Wrapper(monailabel_app)


app = wrapped()
__all__ = ["app", "app_instance"]
