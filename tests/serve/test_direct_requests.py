"""Requests that a proxy passes to an Ingress over its link: both ends, with what they use of Serve in between."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
import waiting
from clients_of_a_proxy import ALL_EVENTS, EVENTS, Client, events, part
from garbage import leaving_at_most
from ray.serve._private.proxy_request_response import ResponseStatus
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments import direct_ingress, proxy_guard, response_receiver
from mpt_serve.deployments.direct_ingress import DirectRuns
from mpt_serve.deployments.proxy_guard import ProxyGuard
from mpt_serve.deployments.response_link import LinkedResponses
from mpt_serve.deployments.response_wire import MAX_BODY_ALONG
from mpt_serve.one_loop import LINK_KEY_VARIABLE
from mpt_serve.openai.arriving_bodies import received_again
from mpt_serve.openai.endpoint import ON_READ

WHOLE = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


class Replica:
    """What an Ingress uses of Serve's object for its replica. running: requests now; statuses: of those that ended."""

    def __init__(self, name: str) -> None:
        self._deployment_config = SimpleNamespace(autoscaling_config=None)
        self._replica_id = SimpleNamespace(unique_id=name)
        self._deployment_id = SimpleNamespace(app_name="mpt")
        self.accepts = True
        self.running = 0
        self.statuses: list[str | None] = []

    def _can_accept_request(self, about: Any) -> bool:
        return self.accepts

    @contextmanager
    def _wrap_request(self, about: Any) -> Iterator[Callable[[str], None]]:
        statuses: list[str] = []
        try:
            yield statuses.append
        finally:
            self.statuses.append(statuses[-1] if statuses else None)

    @asynccontextmanager
    async def _start_request(self, about: Any) -> AsyncIterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class Ingress:
    """One Ingress with its replica. through_serve: requests that Serve called it with."""

    def __init__(self, name: str, app: ASGIApp, monkeypatch: pytest.MonkeyPatch, scaled: bool) -> None:
        self.name = name
        self.node = "here"
        self.replica = Replica(name)
        self.replica._deployment_config.autoscaling_config = object() if scaled else None
        monkeypatch.setattr(direct_ingress, "serve_replica", lambda: self.replica)
        self.asgi = LinkedResponses(app, DirectRuns(app))
        self.through_serve = 0


class Server:
    """A proxy and Ingresses, with a Serve that calls the first of them which it lists."""

    def __init__(self, app: ASGIApp, monkeypatch: pytest.MonkeyPatch, ingresses: int = 1, scaled: bool = False) -> None:
        monkeypatch.setenv(LINK_KEY_VARIABLE, "a-key")
        self.ingresses = [Ingress(f"ingress-{i}", app, monkeypatch, scaled) for i in range(ingresses)]
        self.listed = list(self.ingresses)
        self.request_timeout_s: float | None = None
        self.router: Any = PowerOfTwoChoicesRequestRouter
        self._node_id = "here"
        self.statuses: list[ResponseStatus] = []
        self.proxy = ProxyGuard(self._serve, key="a-key", host="127.0.0.1")
        monkeypatch.setattr(proxy_guard, "http_proxy", lambda: self)
        monkeypatch.setattr(
            "mpt_serve.deployments.direct_proxy._get_serve_request_context",
            lambda: SimpleNamespace(route="/v1/completions"),
        )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self.router.__new__(self.router)
        router._replicas = {
            ingress.name: SimpleNamespace(replica_id=SimpleNamespace(unique_id=ingress.name), node_id=ingress.node)
            for ingress in self.listed
        }
        router = SimpleNamespace(_asyncio_router=SimpleNamespace(_request_router=router))
        async for message in self.send_request_to_replica(
            request_id="of-serve",
            internal_request_id="internal",
            handle=SimpleNamespace(_router=router),
            proxy_request=SimpleNamespace(scope=scope, receive=receive),
            app_is_cross_language=False,
        ):
            if isinstance(message, ResponseStatus):
                self.statuses.append(message)
            else:
                await send(message)

    async def send_request_to_replica(self, proxy_request: Any, **_: Any) -> AsyncIterator[Any]:
        """Call an Ingress as Serve does, message by message. This is what the proxy's middleware replaces."""
        ingress = self.listed[0]
        ingress.through_serve += 1
        messages: asyncio.Queue[Message | None] = asyncio.Queue()

        async def call() -> None:
            try:
                await ingress.asgi({**proxy_request.scope}, proxy_request.receive, messages.put)  # type: ignore[arg-type]
            finally:
                messages.put_nowait(None)

        calling = asyncio.create_task(call())
        while (message := await messages.get()) is not None:
            yield message
        await calling
        yield ResponseStatus(code="200", is_error=False)

    async def request(self, client: Client, path: str = "/v1/completions", body: bytes = b"{}") -> None:
        await client.receive()  # its own body
        length = (b"content-length", b"%d" % len(body))
        scope = {"type": "http", "method": "POST", "path": path, "headers": [length], "client": ("127.0.0.1", 5)}
        await self.proxy(scope, received_again(body, client.receive), client.send)

    async def open_links(self) -> None:
        """Have Serve call each Ingress once, which opens its link."""
        for ingress in self.ingresses:
            self.listed = [ingress]
            client = Client()
            await self.request(client)
            assert client.complete
            if ingress.replica._deployment_config.autoscaling_config is None:
                await until(lambda name=ingress.name: name in self.receiver.replicas)  # type: ignore[misc]
        self.listed = list(self.ingresses)

    @property
    def receiver(self) -> response_receiver.ResponseReceiver:
        assert self.proxy._responses is not None
        return self.proxy._responses

    @property
    def through_serve(self) -> int:
        return sum(ingress.through_serve for ingress in self.ingresses)

    def lose_links(self) -> None:
        for ingress in self.ingresses:
            for link in ingress.asgi._links._open:
                link.close()

    async def check_empty(self) -> None:
        assert not self.receiver._responses
        assert self.receiver.waiting.bytes == 0
        assert self.proxy._admission.running == 0
        assert all(replica.running == 0 for replica in self.receiver.replicas.values())
        await until(lambda: all(ingress.replica.running == 0 for ingress in self.ingresses))
        assert not any(link._clients for ingress in self.ingresses for link in ingress.asgi._links._open)


def run(
    app: ASGIApp,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Server], Awaitable[None]],
    ingresses: int = 1,
    scaled: bool = False,
) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            server = Server(app, monkeypatch, ingresses, scaled)
            try:
                await scenario(server)
                await server.check_empty()
            finally:
                server.lose_links()
                server.receiver.close()
                await asyncio.sleep(0)

    uvloop.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    await waiting.until(condition, within_s=waiting.PATIENCE_S)


async def whole_response(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send(WHOLE)
    await send(part(b"got "))
    await send(part(body, more=False))


class Steps:
    """An application whose stream the test continues."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.starts = asyncio.Event()
        self.ends = asyncio.Event()
        self.client_left = False
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        if self.calls == 1:  # the one that opens the link
            await events(scope, receive, send)
            return
        await receive()
        leaving = asyncio.create_task(receive())  # type: ignore[arg-type]
        self.begun.set()
        await asyncio.wait({asyncio.create_task(self.starts.wait()), leaving}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.client_left = leaving.result()["type"] == "http.disconnect"
            return
        await send(EVENTS)
        await send(part(b"data: 1\n\n"))
        await asyncio.wait({asyncio.create_task(self.ends.wait()), leaving}, return_when=asyncio.FIRST_COMPLETED)
        self.client_left = leaving.done()
        leaving.cancel()
        await send(part(b"data: [DONE]\n\n", more=False))

    async def begin(self, server: Server, *, begun: bool) -> tuple[Client, asyncio.Task[None]]:
        """Send a request that the Ingress takes; begun: and whose response begins."""
        client = Client()
        request = asyncio.create_task(server.request(client))
        await self.begun.wait()
        await until(lambda: any(response._taken for response in server.receiver._responses.values()))
        if begun:
            self.starts.set()
            await until(lambda: bool(client.body))
        return client, request


def test_streams_and_whole_responses_go_directly_once_there_is_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["client"] == ("127.0.0.1", 5)
        await (events if scope["path"] == "/v1/completions" else whole_response)(scope, receive, send)

    async def scenario(server: Server) -> None:
        await server.open_links()
        assert server.through_serve == 1
        stream, whole = Client(), Client()
        await asyncio.gather(
            server.request(stream), server.request(whole, path="/v1/chat/completions", body=b'{"a": 1}')
        )
        assert stream.complete
        assert stream.body == ALL_EVENTS
        assert whole.complete
        assert whole.body == b'got {"a": 1}'
        assert whole.start is not None
        assert (b"content-type", b"application/json") in whole.start["headers"]
        assert b"x-request-id" in dict(whole.start["headers"])
        assert server.through_serve == 1
        assert server.ingresses[0].replica.statuses == ["200", "200"]
        assert [status.code for status in server.statuses] == ["200"] * 3

    run(app, monkeypatch, scenario)


def test_other_requests_and_large_bodies_go_through_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        await server.request(Client(), path="/tokenize")
        await server.request(Client(), body=b"x" * (MAX_BODY_ALONG + 1))
        assert server.through_serve == 3

    run(whole_response, monkeypatch, scenario)


def test_a_scaled_deployment_and_a_timeout_of_serves_need_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        await server.request(Client())
        assert server.through_serve == 2
        assert not server.receiver.replicas

    async def with_timeout(server: Server) -> None:
        await server.open_links()
        server.request_timeout_s = 5.0
        await server.request(Client())
        assert server.through_serve == 2

    async def scaled_later(server: Server) -> None:
        await server.open_links()
        server.ingresses[0].replica._deployment_config.autoscaling_config = object()
        client = Client()
        await server.request(client)
        assert client.body == ALL_EVENTS
        assert server.through_serve == 2

    run(events, monkeypatch, scenario, scaled=True)
    run(events, monkeypatch, with_timeout)
    run(events, monkeypatch, scaled_later)


def test_the_replica_with_the_fewest_requests_gets_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        steps.calls = 1
        requests = [asyncio.create_task(server.request(Client())) for _ in range(6)]
        await until(lambda: sum(ingress.replica.running for ingress in server.ingresses) == 6)
        assert [ingress.replica.running for ingress in server.ingresses] == [2, 2, 2]
        server.listed = server.ingresses[:1]  # Serve stops the others, which finish what they have
        requests += [asyncio.create_task(server.request(Client())) for _ in range(4)]
        await until(lambda: server.ingresses[0].replica.running == 6)
        steps.starts.set()
        steps.ends.set()
        await asyncio.gather(*requests)

    steps = Steps()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        steps.calls += steps.calls > 0
        await (steps if steps.calls else events)(scope, receive, send)

    run(app, monkeypatch, scenario, ingresses=3)


def test_a_replica_without_a_link_is_left_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        new = SimpleNamespace(name="new", node="here", asgi=server.ingresses[0].asgi, through_serve=0)
        server.listed = [new, *server.ingresses]  # type: ignore[list-item]
        client = Client()
        await server.request(client)
        assert client.body == ALL_EVENTS
        assert new.through_serve == 1

    run(events, monkeypatch, scenario)


def test_replicas_on_other_nodes_are_left_alone_while_one_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        far = SimpleNamespace(name="far", node="there", asgi=server.ingresses[0].asgi, through_serve=0)
        server.listed = [far, *server.ingresses]  # type: ignore[list-item]
        for _ in range(5):
            await server.request(Client())
        assert server.through_serve == 2
        assert far.through_serve == 0
        server.ingresses[0].node = server.ingresses[1].node = "elsewhere"
        server.listed = server.ingresses
        await server.request(Client())
        assert server.through_serve == 2
        assert sum(len(ingress.replica.statuses) for ingress in server.ingresses) == 6

    run(events, monkeypatch, scenario, ingresses=2)


def test_another_router_chooses_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Router(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray is not typed
        pass

    async def scenario(server: Server) -> None:
        await server.open_links()
        server.router = Router
        await server.request(Client())
        assert server.through_serve == 2

    run(events, monkeypatch, scenario)


def test_an_error_before_a_request_begins_leaves_it_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("another version of Ray")

    async def scenario(server: Server) -> None:
        await server.open_links()
        monkeypatch.setattr(direct_ingress, "RequestMetadata", fail)
        client = Client()
        await server.request(client, body=b"a body")
        assert client.body == b"got a body"
        assert server.through_serve == 2

    run(whole_response, monkeypatch, scenario)


def test_a_replica_takes_no_more_than_it_has_capacity_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of requests that come together: what is too many goes through Serve, which finds another replica for it."""
    running, most = 0, 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        await events(scope, receive, send)

    async def scenario(server: Server) -> None:
        await server.open_links()
        replica = server.ingresses[0].replica
        monkeypatch.setattr(replica, "_can_accept_request", lambda about: replica.running < 2)
        clients = [Client() for _ in range(12)]
        await asyncio.gather(*(server.request(client) for client in clients))
        assert all(client.body == ALL_EVENTS for client in clients)
        assert len(replica.statuses) == 2
        assert server.through_serve == 1 + 10

    run(app, monkeypatch, scenario)


def test_a_request_that_follows_on_its_connection_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn begins a pipelined request with the context of the one before."""
    following: list[asyncio.Task[None]] = []

    async def scenario(server: Server) -> None:
        await server.open_links()
        second = Client()
        first = Client()
        send = first.send

        async def send_and_go_on(message: Message) -> None:
            await send(message)
            if not message.get("more_body", True):
                following.append(asyncio.create_task(server.request(second, path="/tokenize", body=b"second")))

        first.send = send_and_go_on  # type: ignore[method-assign]
        await server.request(first, body=b"x" * (MAX_BODY_ALONG + 1))
        await following[0]
        assert second.body == b"got second"
        assert server.through_serve == 3

    run(whole_response, monkeypatch, scenario)


def test_a_call_that_is_cancelled_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        _, request = await steps.begin(server, begun=False)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until(lambda: steps.client_left)

    steps = Steps()
    run(steps, monkeypatch, scenario)


def test_what_a_replica_refuses_goes_through_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        server.ingresses[0].replica.accepts = False
        client = Client()
        await server.request(client, body=b"a body")
        assert client.body == b"got a body"
        assert server.through_serve == 2
        assert server.ingresses[0].replica.statuses == []

    run(whole_response, monkeypatch, scenario)


def test_a_request_that_a_link_has_lost_goes_through_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the Ingress has taken it: nothing of it has been done."""

    async def scenario(server: Server) -> None:
        await server.open_links()
        [replica] = server.receiver.replicas.values()
        monkeypatch.setattr(replica.connection, "send", lambda message: None)
        client = Client()
        request = asyncio.create_task(server.request(client, body=b"a body"))
        await until(lambda: bool(server.receiver._responses))
        await asyncio.sleep(0.01)
        server.lose_links()
        await request
        assert client.body == b"got a body"
        assert server.through_serve == 2

    run(whole_response, monkeypatch, scenario)


@pytest.mark.parametrize("begun", [False, True])
def test_a_link_lost_with_a_response_ends_it_with_an_error(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        client, request = await steps.begin(server, begun=begun)
        server.lose_links()
        await request
        assert client.complete
        assert client.start is not None
        assert client.start["status"] == (200 if begun else 503)
        assert b"Send the request again." in client.body
        assert client.body.startswith(b"data: 1\n\n") == begun
        assert server.through_serve == 1
        await until(lambda: steps.client_left)  # the Ingress generates no longer for nobody

    steps = Steps()
    run(steps, monkeypatch, scenario)


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_ends_its_request(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    async def scenario(server: Server) -> None:
        await server.open_links()
        client, request = await steps.begin(server, begun=begun)
        client.left.set()
        await until(lambda: steps.client_left)
        with_error = await asyncio.gather(request, return_exceptions=True)
        assert with_error[0] is None or isinstance(with_error[0], OSError)
        assert server.through_serve == 1

    steps = Steps()
    run(steps, monkeypatch, scenario)


@pytest.mark.parametrize("begun", [False, True])
def test_an_application_that_fails_ends_its_response_with_an_error(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        if calls > 1 and not begun:
            raise RuntimeError("a bug")
        await send(EVENTS)
        await send(part(b"data: 1\n\n"))
        if calls > 1:
            raise RuntimeError("a bug")
        await send(part(b"", more=False))

    async def scenario(server: Server) -> None:
        await server.open_links()
        client = Client()
        await server.request(client)
        assert client.complete
        assert client.start is not None
        assert client.start["status"] == (200 if begun else 503)
        assert client.body.startswith(b"data: 1\n\n") == begun
        assert b"error" in client.body
        assert b"a bug" not in client.body
        assert server.through_serve == 1

    run(app, monkeypatch, scenario)


def test_the_proxy_learns_when_a_direct_request_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope[ON_READ]()
        await until(lambda: True)
        await events(scope, receive, send)

    async def scenario(server: Server) -> None:
        await server.open_links()
        monkeypatch.setattr(proxy_guard._Passed, "read", lambda passed: read.append(True))
        await server.request(Client())
        assert read == [True]

    run(app, monkeypatch, scenario)


def test_a_request_leaves_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its collections would stop all streams for tens of milliseconds."""

    async def scenario(server: Server) -> None:
        await server.open_links()
        for path in ("/v1/completions", "/v1/chat/completions"):
            await server.request(Client(), path=path)
            with leaving_at_most(19):
                for _ in range(20):
                    await server.request(Client(), path=path)
                await asyncio.sleep(0.01)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (events if scope["path"] == "/v1/completions" else whole_response)(scope, receive, send)

    run(app, monkeypatch, scenario)
