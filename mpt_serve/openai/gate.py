"""Refuses requests to generate while the server's capacity is exhausted, before anything else is done for them."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from mpt_serve.openai.error_forms import error_of_path, is_anthropic
from mpt_serve.openai.errors import NotReadyError, retry_headers
from mpt_serve.openai.server_metrics import ServerMetrics

__all__ = ["GENERATING_PATHS", "OVERLOADED_HEADER", "Gate", "TextRequests", "send_refusal"]

_GENERATING = ("/completions", "/chat/completions", "/responses", "/messages", "/embeddings", "/score", "/rerank")
GENERATING_PATHS = frozenset(prefix + path for prefix in ("", "/v1") for path in _GENERATING)
OVERLOADED_HEADER = b"x-mpt-overloaded"  # its value: seconds after which to try again

_REFUSAL = NotReadyError("The server is at capacity: its queue of requests is full. Retry later.")
_BODIES = {path: json.dumps(error_of_path(_REFUSAL, path)).encode() for path in ("/messages", "/completions")}


class Gate:
    """ASGI middleware, the outermost: a refusal must cost little, since there are the more of them the more load.

    retry_after_s: returns None while a new request would be counted, or else when it should be sent again.
    metrics: count the refusals.
    """

    def __init__(self, app: ASGIApp, retry_after_s: Callable[[], float | None], metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            seconds = self._retry_after_s() if scope["path"] in GENERATING_PATHS else None
            if seconds is not None:
                self._metrics.requests[scope["path"], 503] += 1
                self._metrics.refusals["overloaded"] += 1
                await send_refusal(send, scope["path"], seconds, [(OVERLOADED_HEADER, b"%.2f" % seconds)])
                return
        await self._app(scope, receive, send)


async def send_refusal(
    send: Send, path: str, retry_after_s: float, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send the 503 of an exhausted capacity, with further headers. path: of the request."""
    body = _BODIES["/messages" if is_anthropic(path) else "/completions"]
    content = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    retry = [(name.encode(), value.encode()) for name, value in retry_headers(retry_after_s).items()]
    await send({"type": "http.response.start", "status": 503, "headers": [*content, *retry, *headers]})
    await send({"type": "http.response.body", "body": body})


class TextRequests:
    """Bounds the requests to /tokenize and /detokenize that are worked on, apart from those that generate."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a request while the context is entered. Raises NotReadyError (503, `overloaded`)."""
        if self.count >= self._limit:
            message = f"The server is at capacity: {self.count} requests to /tokenize or /detokenize wait or run."
            raise NotReadyError(message, retry_after_s=1)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
