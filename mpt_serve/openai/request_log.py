"""One log line for each request."""

import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.openai.route_names import OTHER_PATH, RouteNames
from mpt_serve.openai.server_metrics import ServerMetrics

__all__ = ["CLIENT_DISCONNECTED", "METHODS", "POLLS", "RequestLog"]

logger = logging.getLogger(__name__)

POLLS = frozenset({"/health", "/ready", "/version", "/load", "/stats", "/metrics"})  # these come every few seconds
CLIENT_DISCONNECTED = 499  # stands for a status where there is none
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class RequestLog:
    """ASGI middleware that counts each request when it has ended, and logs it: at INFO, or at DEBUG if it is a poll.

    names: what is shown of paths. quiet: those that are logged as polls are, because many come at once.
    """

    def __init__(self, app: ASGIApp, names: RouteNames, metrics: ServerMetrics, quiet: Collection[str] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._names = names
        self._quiet = frozenset(quiet) | POLLS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        outcome = "client disconnected"

        async def send_watched(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start":
                outcome = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        finally:
            path, method = scope["path"], scope["method"]
            known = self._names.of(path) or OTHER_PATH
            self._metrics.requests[known, int(outcome) if outcome.isdecimal() else CLIENT_DISCONNECTED] += 1
            logger.log(
                logging.DEBUG if path in self._quiet else logging.INFO,
                "%s: %s %s %s in %.3f s",
                scope.get("state", {}).get("request_id", "-"),
                method if method in METHODS else "(other method)",
                known,
                outcome,
                time.monotonic() - started,
            )
