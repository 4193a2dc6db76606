"""Streamed responses from an Ingress to a proxy's clients over a link, on the event loop that Ray's processes have."""

import asyncio
import json
import pickle
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import uvloop
import waiting
from clients_of_a_proxy import ALL_EVENTS, EVENTS, Client, events, part
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments.link_wire import LinkAddress
from mpt_serve.deployments.lost_requests import RespondToAll
from mpt_serve.deployments.proxy_guard import ProxyGuard
from mpt_serve.deployments.response_link import LinkedResponses
from mpt_serve.deployments.response_wire import LINK_HEADER, link_from, link_header
from mpt_serve.one_loop import LINK_KEY_VARIABLE
from mpt_serve.openai.endpoint import ON_READ

KEY = "a-key"


class ServesReceive:
    """What Serve gives an application to receive with: it begins to ask the proxy when the application first waits."""

    def __init__(self, server: "Server", receive: Receive) -> None:
        self._server = server
        self._receive = receive
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._receive_asgi_messages = self._ask

    async def _ask(self, _: object) -> bytes:
        self._server.asked += 1
        return pickle.dumps([await self._receive()])

    async def fetch_until_disconnect(self) -> None:
        last = None
        while last != "http.disconnect":
            for message in pickle.loads(await self._receive_asgi_messages(None)):
                self._messages.put_nowait(message)
                last = message["type"]

    async def __call__(self) -> Message:
        return await self._messages.get()


@pytest.fixture(params=["serve-first", "link-first"], autouse=True)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each test with what Serve carries before what comes on the link, and after it, as is usual."""
    monkeypatch.setattr(Server, "late", request.param == "link-first")


class Server:
    """A proxy and an Ingress with Serve between them, which keeps the messages of responses that it carries.

    late: whether Serve takes longer than the link.
    """

    late = False

    def __init__(self, app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0  # how often Serve asked the proxy for messages of a request
        monkeypatch.setenv(LINK_KEY_VARIABLE, KEY)
        self.ingress = LinkedResponses(app)
        self.carried: list[Message] = []
        self.proxy = ProxyGuard(self._serve, key=KEY, host="127.0.0.1")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        carried: asyncio.Queue[Message | None] = asyncio.Queue()

        (request_id,) = (value for name, value in scope["headers"] if name == b"x-request-id")

        async def carry(message: Message) -> None:
            self.carried.append(message)
            if message["type"] == "http.response.start":  # as Serve's own middleware does
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            if self.late:
                carried.put_nowait(message)
            else:
                await send(message)

        async def pass_on_late() -> None:
            while (message := await carried.get()) is not None:
                await asyncio.sleep(0.003)
                await send(message)

        passing_on = asyncio.create_task(pass_on_late())
        passed = pickle.loads(pickle.dumps(scope))
        received = ServesReceive(self, receive)
        fetching = asyncio.create_task(received.fetch_until_disconnect())
        try:
            await self.ingress(passed, received, carry)
        finally:
            fetching.cancel()
            carried.put_nowait(None)
            await passing_on

    async def request(
        self, client: Client, headers: tuple[tuple[bytes, bytes], ...] = (), path: str = "/v1/completions"
    ) -> None:
        scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
        await self.proxy(scope, client.receive, client.send)

    def check_empty(self) -> None:
        assert self.proxy._responses is not None
        assert not self.proxy._responses._responses
        assert self.proxy._responses.waiting.bytes == 0
        assert self.proxy._admission.running == 0
        assert not any(link._clients for link in self.ingress._links._open)

    async def disconnect(self) -> None:
        for link in self.ingress._links._open:
            link.close()
        assert self.proxy._responses is not None
        self.proxy._responses.close()
        await asyncio.sleep(0)


def behind(server: Server, passes_on: Callable[[asyncio.Queue[Message], Send], Awaitable[None]]) -> None:
    """Have the server's Serve send what a test takes of the messages that it carries, and what the test adds."""
    serve = server.proxy._app

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages: asyncio.Queue[Message] = asyncio.Queue()
        running = asyncio.create_task(serve(scope, receive, messages.put))  # type: ignore[arg-type]
        await passes_on(messages, send)
        await running

    server.proxy._app = RespondToAll(app)


def run(app: ASGIApp, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Server], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            server = Server(app, monkeypatch)
            try:
                await scenario(server)
                server.check_empty()
            finally:  # else the loop waits for the connections
                await server.disconnect()

    uvloop.run(whole())


until = partial(waiting.until, within_s=waiting.PATIENCE_S)


def test_a_stream_goes_past_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        clients = [Client() for _ in range(5)]
        names = [b"request-%d" % number for number in range(len(clients))]
        requests = (
            server.request(client, ((b"x-request-id", name),)) for client, name in zip(clients, names, strict=True)
        )
        await asyncio.gather(*requests)
        for client, name in zip(clients, names, strict=True):
            assert client.body == ALL_EVENTS
            assert client.complete
            assert client.start == {**EVENTS, "headers": [*EVENTS["headers"], (b"x-request-id", name)]}
        assert len(server.carried) == 2 * len(clients)
        assert not any(message.get("body") for message in server.carried)

    run(events, monkeypatch, scenario)


@pytest.mark.parametrize("streams", [False, True])
def test_the_proxy_learns_when_a_request_has_been_read(monkeypatch: pytest.MonkeyPatch, streams: bool) -> None:
    """Before there is a response, which is as it is otherwise."""
    arrived, read, noted, answers = (asyncio.Event() for _ in range(4))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.set()
        await read.wait()
        scope[ON_READ]()
        await answers.wait()
        if streams:
            await events(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send(part(b"whole", more=False))

    async def scenario(server: Server) -> None:
        client = Client()
        request = asyncio.create_task(server.request(client))
        await arrived.wait()
        assert server.proxy._responses is not None
        [response] = server.proxy._responses._responses.values()
        response.on_read = noted.set
        read.set()
        await noted.wait()
        assert client.start is None
        answers.set()
        await request
        assert client.body == (ALL_EVENTS if streams else b"whole")

    run(app, monkeypatch, scenario)


def test_a_stream_does_not_wait_for_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its start comes over the link too, so that a client may have the whole stream before Serve's first message."""

    async def scenario(server: Server) -> None:
        passes = asyncio.Event()

        async def late(messages: asyncio.Queue[Message], send: Send) -> None:
            await passes.wait()
            for _ in range(2):
                await send(await messages.get())

        behind(server, late)
        request = asyncio.create_task(server.request(client := Client()))
        await until(lambda: client.complete)
        assert client.body == ALL_EVENTS
        assert not request.done()
        passes.set()
        await request

    run(events, monkeypatch, scenario)


@pytest.mark.parametrize("message", [True, False])
def test_an_error_of_serves_ends_a_stream_that_the_link_has_begun(
    monkeypatch: pytest.MonkeyPatch, message: bool
) -> None:
    """As when the node of an Ingress is lost without an end of its connections."""
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENTS)
        await send(part(b"data: 1\n\n"))
        await over.wait()

    async def scenario(server: Server) -> None:
        client = Client()

        async def failing(_: object, send: Send) -> None:
            await until(lambda: b"data: 1" in client.body)
            if message:
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send(part(b"Internal Server Error", more=False))
            over.set()

        behind(server, failing)
        await server.request(client)
        assert client.start is not None
        assert client.start["status"] == 200
        assert client.complete
        assert client.body.startswith(b'data: 1\n\ndata: {"error"')
        assert client.body.endswith(b"data: [DONE]\n\n")

    run(app, monkeypatch, scenario)


def test_a_client_that_reads_slowly_takes_no_place_of_those_that_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        client = Client()
        client.reads.clear()
        request = asyncio.create_task(server.request(client))
        await until(lambda: bool(client.bodies))
        await until(lambda: server.proxy._admission.running == 0)
        assert not client.complete
        client.reads.set()
        await request
        assert client.body == ALL_EVENTS

    run(events, monkeypatch, scenario)


def test_nothing_follows_an_error_of_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads slowly has what came before the error, the error, and no more."""
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await send(EVENTS)
        await send(part(b"data: 1\n\n"))
        await receive()  # the proxy says that nobody reads the rest
        with suppress(OSError):
            await send(part(b"data: 2\n\n", more=False))
        left.set()

    async def scenario(server: Server) -> None:
        client = Client()
        client.reads.clear()

        async def failing(_: object, send: Send) -> None:
            await until(lambda: bool(client.bodies))
            await send({"type": "http.response.start", "status": 408, "headers": []})
            await left.wait()
            client.reads.set()
            await send(part(b"Request Timeout", more=False))

        behind(server, failing)
        await server.request(client)
        assert client.body.startswith(b'data: 1\n\ndata: {"error"')
        assert client.body.endswith(b"data: [DONE]\n\n")
        assert b"data: 2" not in client.body
        assert client.body.count(b"[DONE]") == 1

    run(app, monkeypatch, scenario)


def test_other_responses_go_through_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**EVENTS, "headers": [(b"content-type", b"application/json")]})
        await send(part(b"{}", more=False))

    async def scenario(server: Server) -> None:
        await server.request(client := Client())
        assert client.body == b"{}"
        assert client.complete
        assert server.carried[1]["body"] == b"{}"

    run(app, monkeypatch, scenario)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.tuples(st.binary(max_size=30), st.booleans()), max_size=20), min_size=1, max_size=6),
    st.sets(st.integers(0, 5)),
)
def test_nothing_is_lost_or_reordered(responses: list[list[tuple[bytes, bool]]], slow: set[int]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (which,) = (int(value) for name, value in scope["headers"] if name == b"which")
        await send(EVENTS)
        for body, pause in responses[which]:
            await send(part(body))
            await asyncio.sleep(0.001 if pause else 0)
        await send(part(b"", more=False))

    async def scenario(server: Server) -> None:
        clients = [Client() for _ in responses]
        for which in slow & set(range(len(clients))):
            clients[which].reads.clear()
            asyncio.get_running_loop().call_later(0.005, clients[which].reads.set)
        requests = (server.request(client, ((b"which", b"%d" % i),)) for i, client in enumerate(clients))
        await asyncio.gather(*requests)
        for client, parts in zip(clients, responses, strict=True):
            assert client.body == b"".join(body for body, _ in parts)
            assert client.complete

    with pytest.MonkeyPatch.context() as monkeypatch:
        run(app, monkeypatch, scenario)


def test_a_slow_client_gets_what_has_come_meanwhile_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        slow, fast = Client(), Client()
        slow.reads.clear()
        request = asyncio.create_task(server.request(slow))
        await until(lambda: bool(slow.bodies))
        await server.request(fast)
        assert fast.body == ALL_EVENTS
        receiver = server.proxy._responses
        assert receiver is not None
        await until(lambda: receiver.waiting.bytes == len(ALL_EVENTS) - len(slow.body))
        assert len(slow.bodies) == 1
        slow.reads.set()
        await request
        assert slow.body == ALL_EVENTS
        assert slow.complete
        assert len(slow.bodies) == 2

    run(events, monkeypatch, scenario)


def test_clients_that_do_not_read_have_bounded_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one for whom most waits is taken for gone, when all that waits is too much."""
    sizes, clients = [700, 200, 600, 300], list[Client]()

    async def scenario(server: Server) -> None:
        monkeypatch.setattr("mpt_serve.deployments.response_receiver.MAX_WAITING_BYTES", 1000)
        clients.extend(Client() for _ in sizes)
        for client in clients[:2]:
            client.reads.clear()
        first = asyncio.create_task(server.request(clients[0], ((b"bytes", b"700"),)))
        assert server.proxy._responses is not None
        waiting = server.proxy._responses.waiting
        await until(lambda: waiting.bytes == 700)
        second = asyncio.create_task(server.request(clients[1], ((b"bytes", b"200"),)))
        await until(lambda: waiting.bytes == 900)
        await server.request(clients[2], ((b"bytes", b"600"),))  # it reads, and is not among those that wait
        assert clients[2].complete
        assert waiting.bytes == 900
        other = clients[3]
        other.reads.clear()
        third = asyncio.create_task(server.request(other, ((b"bytes", b"300"),)))
        await until(lambda: waiting.bytes == 500)
        await first  # its connection is closed with an incomplete response
        assert not clients[0].complete
        for client in (clients[1], other):
            client.reads.set()
        await asyncio.gather(second, third)
        assert clients[1].complete
        assert other.complete

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (size,) = (int(value) for name, value in scope["headers"] if name == b"bytes")
        await send(EVENTS)
        await send(part(b"data: x\n\n"))
        await until(lambda: bool(clients[sizes.index(size)].bodies))
        with suppress(OSError):  # its client is taken for gone
            await send(part(b"a" * size, more=False))

    run(app, monkeypatch, scenario)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream until the client leaves."""
    assert (await receive())["type"] == "http.request"
    gone = asyncio.ensure_future(receive())
    await send(EVENTS)
    with suppress(OSError):
        while not gone.done():
            await send(part(b"data: x\n\n"))
            await asyncio.sleep(0.001)
    assert (await gone)["type"] == "http.disconnect"


def test_with_an_open_link_serve_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append((await receive())["body"])
        await events(scope, receive, send)

    async def scenario(server: Server) -> None:
        await server.request(Client())  # the link opens
        asked = server.asked
        for headers in ((), ((b"content-length", b"2"),)):
            await server.request(client := Client(), headers)
            assert client.body == ALL_EVENTS
        assert server.asked == asked
        assert bodies[1:] == [b"", b"{}"]

    run(echo, monkeypatch, scenario)


@pytest.mark.parametrize("early", [False, True])
def test_a_client_that_leaves_before_the_response_begins(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """The link tells of it, whether the Ingress knows of the request yet or not."""
    got: list[str] = []

    async def until_left(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].endswith("wait"):
            await events(scope, receive, send)
            return
        got.extend([(await receive())["type"], (await receive())["type"]])

    async def scenario(server: Server) -> None:
        await server.request(Client())  # the link opens
        client = Client()
        passed_on = server.proxy._app

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            async def listen() -> None:  # as Serve's proxy does
                while (await receive())["type"] != "http.disconnect":
                    pass

            listening = asyncio.create_task(listen())
            if early:
                client.left.set()
                await listening
            call = asyncio.create_task(passed_on(scope, receive, send))
            if not early:
                await until(lambda: bool(got) or any(link._clients for link in server.ingress._links._open))
                client.left.set()
            with suppress(OSError):
                await call
            await listening

        server.proxy._app = serve
        with suppress(OSError):
            await server.request(client, path="/v1/completions/wait")
        assert got == ["http.request", "http.disconnect"]

    run(until_left, monkeypatch, scenario)


def test_the_ingress_learns_of_a_disconnect_over_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        client = Client()
        passed_on = server.proxy._app
        serve_forwards = asyncio.Event()  # never set: Serve is slow to pass the disconnect on

        async def forward(scope: Scope, receive: Receive, send: Send) -> None:
            async def late_receive() -> Message:
                message = await receive()
                if message["type"] == "http.disconnect":
                    await serve_forwards.wait()
                return message

            await passed_on(scope, late_receive, send)

        server.proxy._app = forward

        async def read_disconnect() -> None:  # Serve's proxy always waits for one
            await until(lambda: len(client.bodies) > 3)
            client.left.set()

        await asyncio.gather(server.request(client), read_disconnect())

    run(endless, monkeypatch, scenario)


def test_the_end_of_a_response_is_no_disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The web server says that the client is gone as soon as the response is complete, before Serve knows of that."""

    async def scenario(server: Server) -> None:
        client = Client()
        passed_on = server.proxy._app
        received: list[str] = []

        async def forward(scope: Scope, receive: Receive, send: Send) -> None:
            async def listen() -> None:
                while True:
                    received.append((await receive())["type"])

            listening = asyncio.create_task(listen())
            await passed_on(scope, client.receive, send)
            await asyncio.sleep(0.01)
            listening.cancel()

        server.proxy._app = forward

        async def leave() -> None:
            await until(lambda: client.complete)
            client.left.set()

        await asyncio.gather(server.request(client), leave())
        assert client.body == ALL_EVENTS
        assert received == ["http.request"]

    run(events, monkeypatch, scenario)


def test_a_lost_link_ends_the_response_with_an_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        request = asyncio.create_task(server.request(client := Client()))
        await until(lambda: len(client.bodies) > 3)
        for link in server.ingress._links._open:
            link.close()
        await request
        assert_broken_off(client)
        await server.request(other := Client(), ((b"once", b"1"),))  # the next request gets a new link
        assert other.complete

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (events if (b"once", b"1") in scope["headers"] else endless)(scope, receive, send)

    run(app, monkeypatch, scenario)


def assert_broken_off(client: Client) -> None:
    assert client.complete
    *_, error, done, last = client.body.split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert (done, last) == (b"data: [DONE]", b"")


@pytest.mark.parametrize("error", [None, RuntimeError("Serve")])
def test_an_ingress_that_dies_leaves_an_error_event(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    clients: list[Client] = []

    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENTS)
        await send(part(b"data: x\n\n"))
        await until(lambda: bool(clients[0].bodies))
        if error is not None:
            raise error

    async def scenario(server: Server) -> None:
        clients.append(client := Client())
        await server.request(client)
        assert client.body.startswith(b"data: x\n\n")
        assert_broken_off(client)

    run(dies, monkeypatch, scenario)


def test_the_error_event_has_the_form_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        await send(EVENTS)
        await send(part(b"event: ping\ndata: {}\n\n"))

    async def scenario(server: Server) -> None:
        await server.request(client := Client(), path="/v1/messages")
        *_, error, last = client.body.split(b"\n\n")
        assert last == b""
        assert json.loads(error.removeprefix(b"event: error\ndata: "))["error"]["type"] == "api_error"

    run(dies, monkeypatch, scenario)


def test_an_error_before_the_response_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("early")

    async def scenario(server: Server) -> None:
        await server.request(client := Client())
        assert client.start is not None
        assert client.start["status"] == 503
        assert client.complete

    run(fails, monkeypatch, scenario)


def test_an_ingress_that_dies_before_the_response_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its link is lost too, but the response is no stream: nothing of one is sent."""

    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/first"):
            await events(scope, receive, send)
            return
        (link,) = server_of[0].ingress._links._open
        await asyncio.sleep(0)  # the proxy learns where the response would come from
        link.flush()
        await asyncio.sleep(0.01)
        link.close()
        receiver = server_of[0].proxy._responses
        assert receiver is not None
        await until(lambda: not receiver._connections)
        raise RuntimeError("dead")

    server_of: list[Server] = []

    async def scenario(server: Server) -> None:
        server_of.append(server)
        await server.request(Client(), path="/v1/completions/first")  # the link opens
        await server.request(client := Client())
        assert client.start is not None
        assert client.start["status"] == 503
        assert json.loads(client.body)["error"]["code"] == "loading"

    run(dies, monkeypatch, scenario)


def test_clients_cannot_make_an_ingress_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    address = LinkAddress("127.0.0.1", 9, b"s" * 32, 3)
    assert link_from(link_header(address, KEY), KEY) == address
    assert link_from(link_header(address, "guessed"), KEY) is None
    assert link_from(b"", KEY) is None
    assert link_from(link_header(address, ""), "") is None  # nodes without a key

    async def scenario(server: Server) -> None:
        forged = (LINK_HEADER, link_header(address, KEY))
        await server.request(client := Client(), (forged,))  # the proxy replaces it
        assert client.body == ALL_EVENTS
        client = Client()
        header = (LINK_HEADER, link_header(address, "guessed"))
        await server.ingress({"type": "http", "headers": [header]}, client.receive, client.send)  # no proxy of ours
        assert client.body == ALL_EVENTS

    run(events, monkeypatch, scenario)


@pytest.mark.parametrize("rounds", [10, pytest.param(300, marks=pytest.mark.exhaustive)])
def test_nothing_stays_of_responses_clients_and_links(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Clients that read, leave, or do not read, and links that break: afterwards all is as it was."""

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def one_round(server: Server) -> None:
        clients = [Client() for _ in range(9)]
        for client in clients[::3]:
            client.reads.clear()
        whole = [asyncio.create_task(server.request(client, ((b"once", b"1"),))) for client in clients[:6]]
        broken = [asyncio.create_task(server.request(client)) for client in clients[6:]]
        await until(lambda: all(client.bodies for client in clients))
        clients[1].left.set()
        clients[8].left.set()
        for client in clients:
            client.reads.set()
        await asyncio.gather(*whole)
        for link in server.ingress._links._open:
            link.close()
        await asyncio.gather(*broken)
        for client in clients[6:8]:
            assert_broken_off(client)

    async def scenario(server: Server) -> None:
        await one_round(server)
        files, tasks = open_files(), len(asyncio.all_tasks())
        for _ in range(rounds):
            await one_round(server)
        await until(lambda: open_files() <= files and len(asyncio.all_tasks()) <= tasks)
        assert server.proxy._responses is not None
        assert not server.proxy._responses._responses
        assert server.ingress._links._links == {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(OSError):
            await (events if (b"once", b"1") in scope["headers"] else endless)(scope, receive, send)

    run(app, monkeypatch, scenario)
