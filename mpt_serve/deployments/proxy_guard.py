"""What protects Serve's HTTP proxy from clients' headers, and spares it requests that would be refused anyway.

Serve's proxy fails in plain text, with a 500, on header values that are not UTF-8, and obeys headers of load balancers
whoever sends them. Only code inside the proxy's process can prevent that: Serve calls `middlewares` there if the
environment of the node says so (`PROXY_GUARD` in `mpt_serve.one_loop`). Streamed responses reach clients from here too,
without Serve's messages: see `response_link`.
"""

import logging
import random
import time
from collections.abc import Callable

import ray
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments.logs import hide_client_text
from mpt_serve.deployments.proxy_errors import ProxyErrors
from mpt_serve.deployments.response_receiver import ResponseReceiver
from mpt_serve.deployments.response_wire import LINK_HEADER, link_key
from mpt_serve.openai.gate import GENERATING_PATHS, OVERLOADED_HEADER, send_refusal
from mpt_serve.openai.http_versions import is_to_server, send_methods
from mpt_serve.openai.ids import request_id_from

__all__ = ["ProxyGuard", "middlewares"]

logger = logging.getLogger("ray.serve")

_REQUEST_ID = b"x-request-id"
# Instructions to Serve: which replica, how long, and whether to look for a disconnected client.
_INTERNAL = frozenset(
    {
        b"serve-multiplexed-model-id",
        b"x-session-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        LINK_HEADER,
    }
)
_REFUSE_S = 0.25  # after a refusal; meanwhile the next of the requests that run may end


def middlewares() -> list[Middleware]:
    """Return the middleware of Serve's proxy; Serve calls this in the proxy's process."""
    hide_client_text()
    return [Middleware(ProxyGuard, key=link_key()), Middleware(ProxyErrors)]  # the last is the outermost


class ProxyGuard:
    """ASGI middleware around Serve's proxy.

    Request ids are replaced unless they are harmless in logs, headers for Serve itself are removed, and so is every
    value that is not ASCII. After a refusal of the application (503, `overloaded`), other requests to generate are
    refused here, at a fraction of the cost, until one that runs has ended or a moment has passed.

    key: of `link_key`, which Ingresses have too; without it, responses go through Serve.
    host: where Ingresses reach this process; None for this node's address in Ray.
    """

    def __init__(
        self, app: ASGIApp, clock: Callable[[], float] = time.monotonic, key: str = "", host: str | None = None
    ) -> None:
        self._app = app
        self._clock = clock
        self._responses = ResponseReceiver(key) if key else None
        self._host = host
        self._refuse_until = 0.0
        self._retry_after_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if is_to_server(scope):  # Serve knows paths only
            await send_methods(send)
            return
        scope = {**scope, "headers": _harmless(scope["headers"])}
        if scope["method"] != "POST" or scope["path"] not in GENERATING_PATHS:
            await self._app(scope, receive, send)
            return
        if self._clock() < self._refuse_until:
            seconds = self._retry_after_s * random.uniform(0.5, 1.5)  # they do not return together
            await send_refusal(send, seconds, [(_REQUEST_ID, _request_id(scope))])
            return
        await self._generate(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def send_watched(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 503:
                refused = self._note_refusal(message)
            await send(message)

        try:
            await self._respond(scope, receive, send_watched)
        finally:
            if not refused:
                self._refuse_until = 0.0

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and offer a link for its response."""
        if self._responses is None:
            await self._app(scope, receive, send)
            return
        self._responses.start(self._host or ray.util.get_node_ip_address())
        response = await self._responses.open(receive, send)
        if response is None:
            await self._app(scope, receive, send)
            return
        scope["headers"].append(response.header)
        try:
            await self._app(scope, response.receive, response.send)
        except Exception:
            if not response.incomplete:
                raise
            logger.warning("A response ended with an error of Serve's.", exc_info=True)
        finally:
            self._responses.close_response(response)
        if response.incomplete:
            await response.finish()

    def _note_refusal(self, message: Message) -> bool:
        for name, value in message["headers"]:
            if name.lower() == OVERLOADED_HEADER:
                self._refuse_until = self._clock() + _REFUSE_S
                self._retry_after_s = float(value)
                return True
        return False


def _harmless(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers with one request id that is harmless, and without what Serve would obey or fail on."""
    kept = []
    request_id: str | None = None
    for name, value in headers:
        if name == _REQUEST_ID:
            request_id = value.decode("latin-1") if request_id is None else ""
        elif name.replace(b"_", b"-") not in _INTERNAL and name.isascii() and value.isascii():
            kept.append((name, value))
    return [*kept, (_REQUEST_ID, request_id_from(request_id).encode())]


def _request_id(scope: Scope) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next(value for name, value in headers if name == _REQUEST_ID)
