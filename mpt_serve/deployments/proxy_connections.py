"""Connections to Serve's proxy: those that wait for a request have bounded places and time.

uvicorn, which Serve starts, bounds neither how many connections there are nor how long a client takes for its headers,
nor how many it sends. This is uvicorn's own protocol with such bounds. Serve offers no option for it, so it takes the
place of the class that uvicorn selects by itself.
"""

import asyncio
import json
import logging
import resource
from typing import Any

import uvicorn.protocols.http.auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mpt_serve.configuration.limits import Limits
from mpt_serve.deployments.half_closed import COMMENT, CONTINUE, HalfClosed
from mpt_serve.openai.errors import ApiError, HeadersTooLargeError, InvalidValueError, NotReadyError, error_body
from mpt_serve.openai.ids import new_id

__all__ = ["ABORT", "EVENTS", "BoundedProtocol", "Connections", "bound_connections"]

logger = logging.getLogger("ray.serve")

ABORT = "mpt_serve.abort"  # in a request's scope: a function that closes its connection at once
EVENTS = "mpt_serve.events"  # a function that says: its response is a stream of events

_MOST = 16_384
_SWEEP_S = 1.0
_LINGER_S = 1.0
_MOST_OF_A_URL = 2**16 - 1  # httptools counts its bytes in 16 bits
_REASONS = {
    400: "Bad Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Connections:
    """The connections of one proxy, and their bounds.

    limits: `body_timeout_s` is also the time for headers, twice `max_header_bytes` their size as uvicorn receives them.
    most: connections altogether. Half of them may be idle, and a quarter may be sending headers; one more closes the
    one that has been so for longest.
    """

    def __init__(self, limits: Limits, most: int) -> None:
        self.max_head_bytes = 2 * limits.max_header_bytes
        self._seconds = limits.body_timeout_s
        self._most = most
        self._idle_places = max(1, most // 2)
        self._unfinished_places = max(1, most // 4)
        self.all: set[BoundedProtocol] = set()
        self.idle: dict[BoundedProtocol, None] = {}  # between two requests, for uvicorn's keep-alive time at most
        self.unfinished: dict[BoundedProtocol, float] = {}  # since when headers are awaited
        self._sweeping = False

    def add(self, connection: "BoundedProtocol") -> bool:
        """Add a new connection, and return whether there is a place for it."""
        self.all.add(connection)
        if len(self.all) > self._most:
            return False
        self.expect_headers(connection)
        return True

    def expect_headers(self, connection: "BoundedProtocol") -> None:
        """Give a connection a limited time for its next request's headers, unless it runs already."""
        self.idle.pop(connection, None)
        if connection in self.unfinished:
            return
        if len(self.unfinished) >= self._unfinished_places:
            next(iter(self.unfinished)).abort()
        loop = asyncio.get_running_loop()
        self.unfinished[connection] = loop.time()
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(_SWEEP_S, self._sweep)

    def no_longer_waits(self, connection: "BoundedProtocol") -> None:
        """Note that the headers of a request are complete, or that no other request is awaited."""
        self.idle.pop(connection, None)
        self.unfinished.pop(connection, None)

    def wait(self, connection: "BoundedProtocol") -> None:
        """Note that a response is complete, and nothing has come since."""
        if len(self.idle) >= self._idle_places:
            next(iter(self.idle)).abort()
        self.idle[connection] = None

    def remove(self, connection: "BoundedProtocol") -> None:
        """Forget a connection. Idempotent."""
        self.all.discard(connection)
        self.no_longer_waits(connection)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        too_old = loop.time() - self._seconds
        for connection, since in list(self.unfinished.items()):
            if since > too_old:
                break
            connection.abort()
        self._sweeping = bool(self.unfinished)
        if self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep)


class BoundedProtocol(HttpToolsProtocol):
    """One connection of uvicorn's, which `connections` bounds."""

    connections_of_proxy: Connections

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head = False
        self._head_bytes = 0
        self._refused = False
        self._sends_events = False
        self._half_closed: HalfClosed | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if not self.connections_of_proxy.add(self):
            self._refuse(NotReadyError("The server is at capacity: it has too many connections. Retry later."))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that runs, if there is one."""
        self.connections_of_proxy.remove(self)
        self._watch_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self._refused:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.connections_of_proxy.expect_headers(self)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.connections_of_proxy.max_head_bytes:
                self._refuse_headers()

    def on_message_begin(self) -> None:
        """Take the first bytes of a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]
        self.scope[EVENTS] = self._send_events  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._in_head = False
        self.connections_of_proxy.no_longer_waits(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there."""
        last = not self.pipeline
        self._sends_events = False
        super().on_response_complete()
        if last and self._half_closed is not None:
            self._watch_no_longer()
            self.transport.close()
        elif last and not self.transport.is_closing():
            self.connections_of_proxy.wait(self)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Note that the client sends nothing more, and return whether it may still wait for a response."""
        cycle = self.cycle
        waits = cycle is not None and not cycle.response_complete and not cycle.more_body and not self._in_head
        if not waits or self.scope["http_version"] != "1.1" or not HalfClosed.can_watch(self.transport):
            return False
        if self._half_closed is None:
            self._half_closed = HalfClosed(self.transport, self._harmless_bytes, self.abort)
            if self._half_closed.begin():
                return False
        return True

    def _send_events(self) -> None:
        self._sends_events = True

    def _harmless_bytes(self) -> bytes:
        """Return what means nothing at this place of the response that runs."""
        if self.pipeline:  # the response that runs is not the cycle's
            return b""
        if not self.cycle.response_started:
            return CONTINUE
        return COMMENT if self._sends_events and self.cycle.chunked_encoding else b""

    def _watch_no_longer(self) -> None:
        if self._half_closed is not None:
            self._half_closed.end()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to another protocol."""
        self.connections_of_proxy.remove(self)
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Respond to what is not HTTP, and to a path that the parser has no place for."""
        if len(self.url) > _MOST_OF_A_URL:
            self._refuse_headers()
        else:
            self._refuse(InvalidValueError("What was sent is not an HTTP/1.1 request."))

    def abort(self) -> None:
        """Close the connection at once."""
        self.connections_of_proxy.remove(self)
        self.transport.abort()

    def _refuse_headers(self) -> None:
        most = self.connections_of_proxy.max_head_bytes // 2
        self._refuse(HeadersTooLargeError(f"The request's headers are too large: send at most {most} bytes."))

    def _refuse(self, error: ApiError) -> None:
        """Respond with an error, and close the connection when the client has had time to read it."""
        self._in_head, self._refused = False, True
        self.connections_of_proxy.no_longer_waits(self)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self.pipeline or not cycle.more_body or cycle.response_started:  # of another request
                self.transport.abort()
                return
            cycle.disconnected = True  # a part of its body is not HTTP: nobody waits for another response
            cycle.message_event.set()
        content = json.dumps(error_body(error)).encode()
        lines = [f"HTTP/1.1 {error.status} {_REASONS[error.status]}", "content-type: application/json"]
        lines += [f"content-length: {len(content)}", "connection: close", f"x-request-id: {new_id('req')}"]
        lines += [f"{name}: {value}" for name, value in error.headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + content)
        if self.transport.can_write_eof():
            self.transport.write_eof()  # to close now, while more comes in, could take the response from the client
            self.loop.call_later(_LINGER_S, self.transport.abort)
        else:
            self.transport.close()


def bound_connections(limits: Limits) -> None:
    """Let uvicorn's servers that are made in this process from now on have bounded connections."""
    if not issubclass(uvicorn.protocols.http.auto.AutoHTTPProtocol, HttpToolsProtocol):
        logger.warning("uvicorn does not use httptools: the connections of Serve's proxy are not bounded.")
        return
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(64, min(_MOST, files // 2))
    bounded = type("BoundedProtocol", (BoundedProtocol,), {"connections_of_proxy": Connections(limits, most)})
    uvicorn.protocols.http.auto.AutoHTTPProtocol = bounded
