"""What every request has: an id, a bound on its headers, and a response to any exception."""

import logging
from time import perf_counter

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.error_forms import error_response
from mpt_serve.openai.errors import HeadersTooLargeError, as_api_error
from mpt_serve.openai.ids import request_id_from
from mpt_serve.openai.server_metrics import ServerMetrics

__all__ = ["Envelope"]

logger = logging.getLogger(__name__)


class Envelope:
    """ASGI middleware that gives every request an id, and turns every exception into an error response of the API.

    Serve's proxy, in front of it, adds an id to requests without one, and the request's id to every response.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {}).update(request_id=request_id, started=perf_counter())
        started = False

        async def send_watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            self._check_headers(scope)
            await self._app(scope, receive, send_watched)
        except ClientDisconnect:
            logger.debug("%s: the client disconnected", request_id)
        except Exception as error:
            if started:  # too late for another status; the server closes the connection
                raise
            await self._error_response(error, scope)(scope, receive, send_watched)

    def _error_response(self, error: Exception, scope: Scope) -> Response:
        # Not where the error was caught: it refers to that call, whose variables must therefore not refer to it.
        api_error = as_api_error(error)
        self._metrics.refusals[str(api_error.code)] += 1
        return error_response(api_error, scope)

    def _check_headers(self, scope: Scope) -> None:
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self._limits.max_headers or size > self._limits.max_header_bytes:
            raise HeadersTooLargeError(
                f"The request's headers are too large: send at most {self._limits.max_headers} headers with"
                f" {self._limits.max_header_bytes} bytes in total."
            )
