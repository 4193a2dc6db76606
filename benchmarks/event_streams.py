"""Streamed completions over raw sockets, received by little code, since clients take the same cores as the server."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlparse

try:
    from uvloop import run as run_loop
except ImportError:  # on Windows
    from asyncio import run as run_loop

__all__ = ["Stream", "run_streams"]

_EVENT, _DONE = b"\ndata: {", b"\ndata: [DONE]"


class Stream(asyncio.Protocol):
    """One streamed completion: when its events came. JSON has no newlines inside, so an event is its first bytes."""

    def __init__(self, netloc: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        self._start, self._rest, self._done = b"", b"", False
        self._closed = asyncio.get_running_loop().create_future()
        self.sent = 0.0
        self.events: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sent = time.perf_counter()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._start = self._start or data
        data = self._rest + data
        self.events += [now] * data.count(_EVENT)
        self._done = self._done or _DONE in data
        cut = data.rfind(b"\n")  # what may begin an event that is not complete
        self._rest = data[cut:] if len(data) - cut < len(_DONE) and not data[cut:].startswith(_EVENT) else b""

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set_result(None)

    async def ended(self, url: str) -> None:
        """Raise RuntimeError where the response is not a complete stream."""
        await self._closed
        status = self._start.split(b" ", 2)[1:2]
        if status != [b"200"] or not self._done or not self.events:
            raise RuntimeError(f"{url} responded with status {status} and no complete stream")


def run_streams(url: str, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    """Send the requests at once and return their streams, which have ended. Raises RuntimeError as `Stream.ended`."""
    parts = urlparse(url)

    async def one(body: dict[str, Any]) -> Stream:
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(lambda: Stream(parts.netloc, body), parts.hostname, parts.port)
        await stream.ended(url)
        return stream

    async def all_streams() -> list[Stream]:
        return await asyncio.gather(*(one(body) for body in bodies))

    return run_loop(all_streams())
