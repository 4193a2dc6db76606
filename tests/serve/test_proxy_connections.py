"""Connections to Serve's proxy: uvicorn with our protocol, on the event loop that Ray's processes have."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
import uvicorn.protocols.http.auto
import uvloop
from starlette.types import Receive, Scope, Send
from waiting import until

from mpt_serve.configuration.limits import Limits
from mpt_serve.deployments import half_closed
from mpt_serve.deployments.half_closed import COMMENT, CONTINUE
from mpt_serve.deployments.proxy_connections import ABORT, EVENTS, BoundedProtocol, Connections, bound_connections
from mpt_serve.deployments.proxy_send import patient_send

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"


class Proxy:
    """An application behind uvicorn with bounded connections."""

    def __init__(self, most: int, limits: Limits) -> None:
        self.connections = Connections(limits, most)
        self.port = 0
        self.requests = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.body = b"ok"
        self.events: asyncio.Event | None = None  # set: a stream has its second event
        self.clients: list[Client] = []

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        send = patient_send(send, scope[ABORT], patience_s=0.05)
        await self.answers.wait()
        if self.events is not None:
            await self._send_events(scope, send, self.events)
            return
        headers = [(b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(self.body), 1 << 20):
            part = self.body[start : start + (1 << 20)]
            more = start + len(part) < len(self.body)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async def _send_events(self, scope: Scope, send: Send, second: asyncio.Event) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        scope[EVENTS]()
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await second.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async def connect(self, request: bytes = b"") -> "Client":
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        client.send(request)
        self.clients.append(client)
        return client

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many connections there are, how many of them are idle, and how many are sending headers."""
        own = self.connections
        return len(own.all), len(own.idle), len(own.unfinished)

    async def wait_for(self, *counts: int) -> None:
        await until(lambda: self.counts == counts, lambda: str(self.counts))


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 30)

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and the body of a response with a length."""
        self.last_head = head = await self.head()
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        return int(head.split()[1]), await asyncio.wait_for(self._reader.readexactly(int(length.split()[1])), 30)

    async def read(self, expected: bytes) -> None:
        assert await asyncio.wait_for(self._reader.readexactly(len(expected)), 30) == expected

    async def closed(self) -> bytes:
        """Return what comes until the connection is closed."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self._reader.read(), 30)
        return b""

    def close(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(proxy: Proxy) -> AsyncIterator[None]:
    protocol = type("Bounded", (BoundedProtocol,), {"connections_of_proxy": proxy.connections})
    config = uvicorn.Config(proxy.app, port=0, log_level="critical", lifespan="off", http=protocol, interface="asgi3")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    proxy.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield
    finally:
        for client in proxy.clients:
            client.close()
        proxy.answers.set()
        server.force_exit = True
        await server.shutdown()


def run(scenario: Callable[[Proxy], Awaitable[None]], most: int = 800, **limits: Any) -> None:
    async def main() -> None:
        proxy = Proxy(most, Limits(**limits))
        async with serving(proxy):
            await scenario(proxy)

    uvloop.run(main())


def error_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def test_a_connection_is_idle_sends_headers_or_has_a_request() -> None:
    async def scenario(proxy: Proxy) -> None:
        client = await proxy.connect()
        await proxy.wait_for(1, 0, 1)
        client.send(GET[:10])
        await proxy.wait_for(1, 0, 1)
        proxy.answers.clear()
        client.send(GET[10:])
        await proxy.wait_for(1, 0, 0)
        proxy.answers.set()
        assert await client.answer() == (200, b"ok")
        await proxy.wait_for(1, 1, 0)
        for request in (GET, GET + GET, POST + b"{}"):  # one after the other, pipelined, with a body
            client.send(request)
            for _ in range(request.count(b"HTTP")):
                assert await client.answer() == (200, b"ok")
        await proxy.wait_for(1, 1, 0)
        client.close()
        await proxy.wait_for(0, 0, 0)

    run(scenario)


def test_headers_have_a_deadline_which_further_bytes_do_not_move() -> None:
    async def scenario(proxy: Proxy) -> None:
        silent, slow = await proxy.connect(), await proxy.connect(GET[:-4])
        used = await proxy.connect(GET)
        await used.answer()
        used.send(GET[:10])
        proxy.answers.clear()
        busy = await proxy.connect(GET)
        while proxy.counts[2]:
            if not slow.writer.is_closing():
                slow.send(b"a")
            await asyncio.sleep(0.02)
        for client in (silent, slow, used):
            assert await client.closed() == b""
        proxy.answers.set()
        assert await busy.answer() == (200, b"ok")  # only headers have this deadline

    run(scenario, body_timeout_s=1)  # long enough for a complete request on a busy machine


def test_a_place_is_taken_from_the_connection_that_waits_longest() -> None:
    """Of 8 connections, 4 may be idle, and 2 sending headers."""

    async def scenario(proxy: Proxy) -> None:
        idle = []
        for _ in range(4):
            idle.append(await proxy.connect(GET))
            assert await idle[-1].answer() == (200, b"ok")
        await proxy.wait_for(4, 4, 0)
        slow = [await proxy.connect(GET[:5]) for _ in range(4)]
        assert await slow[0].closed() == b""
        assert await slow[1].closed() == b""
        await proxy.wait_for(6, 4, 2)  # none of the idle ones
        served = await proxy.connect(GET)  # which takes a place of the slow until its headers are complete
        assert await served.answer() == (200, b"ok")
        assert await idle[0].closed() == b""
        await until(lambda: proxy.counts[1] == 4)

    run(scenario, most=8)


def test_one_connection_too_many_gets_an_error() -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.answers.clear()
        busy = []
        for number in range(8):
            busy.append(await proxy.connect(GET))
            await proxy.wait_for(number + 1, 0, 0)
        refused = await proxy.connect()
        status, body = await refused.answer()
        assert (status, error_of(body)) == (503, "overloaded")
        assert await refused.closed() == b""
        await proxy.wait_for(8, 0, 0)
        proxy.answers.set()
        for client in busy:
            assert await client.answer() == (200, b"ok")

    run(scenario, most=8)


@pytest.mark.parametrize("before", [b"", GET], ids=["alone", "while a response is awaited"])
def test_endless_headers_are_not_kept(before: bytes) -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.answers.clear()
        client = await proxy.connect(before + GET[:-2])
        client.send(b"".join(b"x-%d: %s\r\n" % (number, b"a" * 1000) for number in range(300)))
        if not before:
            status, body = await client.answer()
            assert (status, error_of(body)) == (431, "headers_too_large")
            assert b"x-request-id: req-" in client.last_head
        assert await client.closed() == b""
        client.close()
        await proxy.wait_for(0, 0, 0)

    run(scenario, max_header_bytes=10_000)


@pytest.mark.parametrize(
    "request_bytes",
    [
        *(b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n"),
        *(b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n"),
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_an_error_of_the_api(request_bytes: bytes) -> None:
    async def scenario(proxy: Proxy) -> None:
        client = await proxy.connect(request_bytes)
        status, body = await client.answer()
        assert (status, error_of(body)) == (400, "invalid_value")
        assert b"x-request-id: req-" in client.last_head
        assert await client.closed() == b""
        assert proxy.requests == 0

    run(scenario)


def test_a_body_that_ceases_to_be_http_gets_an_error_of_the_api() -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.answers.clear()  # so that the request waits, as one whose body is read does
        client = await proxy.connect(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await until(lambda: proxy.requests == 1)
        client.send(b"not a length\r\n")
        status, body = await client.answer()
        assert (status, error_of(body)) == (400, "invalid_value")
        proxy.answers.set()
        assert await client.closed() == b""  # and no response of the application
        await proxy.wait_for(0, 0, 0)

    run(scenario)


@pytest.mark.parametrize("before", [b"", GET])
def test_a_path_longer_than_the_parser_takes_is_too_large_a_header(before: bytes) -> None:
    async def scenario(proxy: Proxy) -> None:
        client = await proxy.connect(before)
        if before:
            assert await client.answer() == (200, b"ok")
        client.send(b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 70_000))
        status, body = await client.answer()
        assert (status, error_of(body)) == (431, "headers_too_large")
        assert b"65536 bytes" in body

    run(scenario)


def test_nonsense_while_a_response_is_awaited_closes_the_connection() -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.answers.clear()
        client = await proxy.connect(GET + b"nonsense\r\n\r\n")
        assert await client.closed() == b""
        await proxy.wait_for(0, 0, 0)

    run(scenario)


class TestHalfClosed:
    """Clients that have sent a complete request and end their side of the connection."""

    @pytest.mark.parametrize("request_bytes", [GET, POST + b"{}"])
    def test_they_get_their_response(self, request_bytes: bytes) -> None:
        async def scenario(proxy: Proxy) -> None:
            proxy.answers.clear()
            client = await proxy.connect(request_bytes)
            client.writer.write_eof()
            await client.read(CONTINUE)
            proxy.answers.set()
            assert await client.answer() == (200, b"ok")
            assert await client.closed() == b""
            await proxy.wait_for(0, 0, 0)

        run(scenario)

    def test_they_get_all_responses(self) -> None:
        async def scenario(proxy: Proxy) -> None:
            proxy.answers.clear()
            client = await proxy.connect(GET + GET)
            client.writer.write_eof()
            await proxy.wait_for(1, 0, 0)
            proxy.answers.set()
            assert (await client.closed()).replace(CONTINUE, b"").count(b"\r\n\r\nok") == 2

        run(scenario)

    def test_they_get_their_streams_with_a_comment(self) -> None:
        async def scenario(proxy: Proxy) -> None:
            proxy.events = asyncio.Event()
            client = await proxy.connect(GET)
            await until(lambda: proxy.requests == 1)
            await client.head()
            await client.read(b"9\r\ndata: 1\n\n\r\n")
            client.writer.write_eof()
            await client.read(COMMENT)
            proxy.events.set()
            assert await client.closed() == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"

        run(scenario)

    def test_what_is_not_complete_ends(self) -> None:
        async def scenario(proxy: Proxy) -> None:
            proxy.answers.clear()
            for part in (GET[:-1], POST, GET + GET[:-1], GET.replace(b"1.1", b"1.0")):
                client = await proxy.connect(part)
                client.writer.write_eof()
                assert await client.closed() == b""
            await proxy.wait_for(0, 0, 0)

        run(scenario)

    @pytest.mark.parametrize("first", [False, True], ids=["at once", "later"])
    @pytest.mark.parametrize("events", [False, True])
    def test_those_that_leave_are_noticed(self, first: bool, events: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without anything that the application sends."""
        monkeypatch.setattr(half_closed, "_PROBE_S", 0.01)

        async def scenario(proxy: Proxy) -> None:
            if events:
                proxy.events = asyncio.Event()
            else:
                proxy.answers.clear()
            client = await proxy.connect(GET)
            await until(lambda: proxy.requests == 1)
            if events:
                await client.head()
                await client.read(b"9\r\ndata: 1\n\n\r\n")
            if first:
                client.writer.write_eof()
                await client.read(COMMENT if events else CONTINUE)
            client.writer.close()
            await proxy.wait_for(0, 0, 0)
            if proxy.events is not None:
                proxy.events.set()

        run(scenario)


def test_a_client_that_does_not_read_is_disconnected() -> None:
    async def scenario(proxy: Proxy) -> None:
        proxy.body = b"a" * (64 << 20)
        client = await proxy.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(GET)
        await until(lambda: proxy.requests == 1)
        await proxy.wait_for(0, 0, 0)

    run(scenario)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries
def test_a_websocket_counts_no_longer() -> None:
    async def scenario(proxy: Proxy) -> None:
        upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        client = await proxy.connect(GET[:-2] + upgrade + b"sec-websocket-version: 13\r\n\r\n")
        await proxy.wait_for(0, 0, 0)
        client.close()

    run(scenario)


def test_servers_made_from_now_on_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "uvicorn.protocols.http.auto.AutoHTTPProtocol"
    monkeypatch.setattr(name, uvicorn.protocols.http.auto.AutoHTTPProtocol)
    bound_connections(Limits())
    config = uvicorn.Config(lambda: None, lifespan="off")
    config.load()
    assert issubclass(config.http_protocol_class, BoundedProtocol)


def test_without_httptools_connections_are_as_uvicorn_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "uvicorn.protocols.http.auto.AutoHTTPProtocol"
    monkeypatch.setattr(name, asyncio.Protocol)
    bound_connections(Limits())
    assert uvicorn.protocols.http.auto.AutoHTTPProtocol is asyncio.Protocol
