"""A 503 for requests that Serve's proxy has no response to, mostly as their replica has died with them.

Serve leaves those to the web server, which sends a 500 in plain text.
"""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.openai.error_forms import error_response
from mpt_serve.openai.errors import NotReadyError

__all__ = ["RespondToAll"]

logger = logging.getLogger("ray.serve")

_MESSAGE = "The process that served this request has ended. Send the request again."


class RespondToAll:
    """ASGI middleware, the innermost around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            if started:
                raise
            logger.warning("A request ended with an error of Serve's.", exc_info=True)
        if not started:
            error = NotReadyError(_MESSAGE, code="loading", retry_after_s=1)
            for name, value in scope["headers"]:
                if name == b"x-request-id":
                    error.headers["x-request-id"] = value.decode("latin-1")
            await error_response(error, scope)(scope, receive, send)
