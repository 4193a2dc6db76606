"""Responses of Serve's own HTTP proxy to requests that it does not pass on, as errors of this API.

Serve writes them in plain text; everything behind it writes JSON. Browsers get a page while there is no application.
"""

import logging

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.openai.error_forms import error_response
from mpt_serve.openai.errors import ApiError, DeadlineError, InternalServerError, NotReadyError
from mpt_serve.openai.pages import starting_page

__all__ = ["ProxyErrors"]

logger = logging.getLogger("ray.serve")

_REPLACED = (b"content-type", b"content-length")


class ProxyErrors:
    """ASGI middleware around Serve's proxy: replaces its plain-text errors, and what it raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        replaced: Message | None = None

        async def send_checked(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start" and _is_serves_error(message):
                replaced = message
            elif replaced is None:
                started = True
                await send(message)
            elif not message.get("more_body", False):
                start, replaced, started = replaced, None, True
                headers = [(name, value) for name, value in start["headers"] if name.lower() not in _REPLACED]
                page = starting_page(scope) if start["status"] == 404 else None
                await _send(page or error_response(_error(start["status"]), scope), headers, scope, receive, send)

        try:
            await self._app(scope, receive, send_checked)
        except Exception:
            if started:
                raise
            logger.exception("Serve's proxy failed on a request.")
            await error_response(InternalServerError(), scope)(scope, receive, send)


def _is_serves_error(start: Message) -> bool:
    """Return whether a response is an error in plain text; those of the application are JSON."""
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return start["status"] >= 400 and not any(kind.startswith(b"application/json") for kind in kinds)


def _error(status: int) -> ApiError:
    match status:
        case 404:  # Serve knows no application at this path: it has not started, or is being removed
            return NotReadyError("No application runs at this path, or it has not started yet.", code="loading")
        case 408:
            return DeadlineError("The request was not finished within the time limit of the server's HTTP proxy.")
        case 429 | 503:
            return NotReadyError("The server cannot take requests now. Retry later.")
        case _:
            return InternalServerError()


async def _send(
    response: Response, headers: list[tuple[bytes, bytes]], scope: Scope, receive: Receive, send: Send
) -> None:
    response.raw_headers.extend(headers)
    await response(scope, receive, send)
