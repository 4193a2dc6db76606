"""Clients that put load on a server: each role runs in a separate process, so that none delays the others' clocks."""

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlparse

__all__ = ["Figures", "Role", "percentile", "request", "run_roles"]

END = b"0\r\n\r\n"  # of a chunked body


@dataclass(frozen=True)
class Role:
    """What the clients of one process do until `seconds` have passed.

    requests: sent in turn, each as soon as its predecessor's response has ended, on `clients` connections.
    pause_s: between two requests of a client. patience: share of Retry-After that a refused client waits; 0 for none,
    and then it waits `pause_s`.
    """

    name: str
    url: str
    requests: Sequence[bytes]
    clients: int
    seconds: float
    pause_s: float = 0.0
    patience: float = 0.0
    spread_s: float = 0.0  # over which the clients begin


@dataclass
class Figures:
    """What the clients of one role saw. Times in seconds.

    served, refused: responses with 200 and with 503. other: with another status. broken: connections that ended early.
    latency: of the served, to the last byte. ttft: to the first event of a stream. gaps: between events.
    retry_after: of the refused. cpu: of the process.
    """

    served: int = 0
    refused: int = 0
    other: dict[int, int] = field(default_factory=dict)
    broken: int = 0
    latency: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)
    cpu: float = 0.0


def request(url: str, path: str, body: bytes | dict[str, Any] | None = None, key: str | None = None) -> bytes:
    """Return a request's bytes: a GET, or a POST of a JSON body. key: an API key."""
    method = "GET" if body is None else "POST"
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {urlparse(url).netloc}\r\n"
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values are; NaN for none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def run_roles(roles: Sequence[Role]) -> dict[str, Figures]:
    """Run all roles at the same time and return what each saw, by name."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(roles)) as pool:
        return dict(zip((role.name for role in roles), pool.map(_run, roles, chunksize=1), strict=True))


def _run(role: Role) -> Figures:
    begun = time.process_time()
    figures = asyncio.run(_run_clients(role))
    figures.cpu = time.process_time() - begun
    return figures


async def _run_clients(role: Role) -> Figures:
    figures = Figures()
    end = time.perf_counter() + role.seconds
    clients = [_client(role, figures, end, number) for number in range(role.clients)]
    await asyncio.gather(*clients)
    return figures


async def _client(role: Role, figures: Figures, end: float, number: int) -> None:
    await asyncio.sleep(role.spread_s * number / role.clients)
    connection: Connection | None = None
    parts = urlparse(role.url)
    index = number
    while time.perf_counter() < end:
        pause = role.pause_s
        try:
            if connection is None or connection.closed:
                _, protocol = await asyncio.get_running_loop().create_connection(Connection, parts.hostname, parts.port)
                connection = protocol
            data = role.requests[index % len(role.requests)]
            index += 1
            response = await asyncio.wait_for(connection.exchange(data), max(0.01, end - time.perf_counter()))
        except TimeoutError:
            break
        except OSError:
            figures.broken += 1
            await asyncio.sleep(0.05)
            continue
        pause = _note(figures, response, role)
        if pause or role.pause_s:
            await asyncio.sleep(min(pause, max(0.0, end - time.perf_counter())))
    if connection is not None:
        connection.close()


def _note(figures: Figures, response: "Response", role: Role) -> float:
    """Count a response, and return the seconds to wait before the next request."""
    if response.status == 503:
        figures.refused += 1
        seconds = response.retry_after_s
        figures.retry_after.append(seconds)
        return role.patience * seconds or role.pause_s * random.uniform(0.5, 1.5)
    if response.status != 200:
        figures.other[response.status] = figures.other.get(response.status, 0) + 1
        return role.pause_s
    figures.served += 1
    figures.latency.append(response.ended - response.sent)
    if response.events:
        figures.ttft.append(response.events[0] - response.sent)
        figures.gaps += [b - a for a, b in zip(response.events, response.events[1:], strict=False)]
    return role.pause_s


class Response:
    """One response: status, Retry-After, and when its events came."""

    def __init__(self) -> None:
        self.sent = time.perf_counter()
        self.ended = 0.0
        self.status = 0
        self.retry_after_s = 0.0
        self.events: list[float] = []


class Connection(asyncio.Protocol):
    """A connection on which one request follows the other. Parses what these servers send, and no more."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._ended: asyncio.Future[Response] | None = None
        self._head = b""
        self._left: int | None = 0  # of a body with a length; None for a chunked one
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(ConnectionError("the server closed the connection"))

    async def exchange(self, data: bytes) -> Response:
        """Send a request and return its response. Raises OSError if the connection ends before it."""
        assert self._transport is not None
        if self.closed:
            raise ConnectionError("the server closed the connection")
        self._head, self._tail, self._left = b"", b"", 0
        self._response = Response()
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._ended

    def close(self) -> None:
        """Close the connection."""
        assert self._transport is not None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a part of the response."""
        response, ended = self._response, self._ended
        if response is None or ended is None or ended.done():
            return
        if response.status == 0:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._read_head(response, head)
        if self._left is None:
            response.events += [time.perf_counter()] * (b"data: {" in data)
            self._tail = (self._tail + data)[-len(END) :]
            done = self._tail == END
        else:
            self._left -= len(data)
            done = self._left <= 0
        if done:
            response.ended = time.perf_counter()
            ended.set_result(response)

    def _read_head(self, response: Response, head: bytes) -> None:
        lines = head.split(b"\r\n")
        response.status = int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        response.retry_after_s = int(headers.get(b"retry-after-ms", b"0")) / 1000
        self._left = None if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0"))
