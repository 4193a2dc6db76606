"""The middleware of Serve's proxy: harmless headers in, and refusals without the application's work."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn.protocols.http.auto
from ray.serve._private.http_util import configure_http_middlewares
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from mpt_serve.access.api_key import append_line, new_key
from mpt_serve.access.key_store import KeyStore
from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.proxy_limits import KeySource, ProxyLimits
from mpt_serve.deployments.proxy_admission import ProxyAdmission
from mpt_serve.deployments.proxy_connections import ABORT, BoundedProtocol
from mpt_serve.deployments.proxy_errors import ProxyErrors
from mpt_serve.deployments.proxy_guard import ProxyGuard
from mpt_serve.errors import BusyError
from mpt_serve.one_loop import PROXY_GUARD
from mpt_serve.openai.gate import Gate
from mpt_serve.openai.server_metrics import ServerMetrics

Headers = list[tuple[bytes, bytes]]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Application:
    """Stands for Serve's proxy and our application: full or not, and it keeps what it received."""

    def __init__(self) -> None:
        self.retry_after_s: float | None = None
        self.received: list[Headers] = []
        self.hold: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.received.append(scope["headers"])
        await Gate(self._accept, lambda: self.retry_after_s, ServerMetrics())(scope, receive, send)

    async def _accept(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.hold is not None:
            await self.hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def receive() -> Message:
    raise AssertionError("no body is read")


async def status(
    app: ASGIApp, headers: Headers | None = None, path: str = "/v1/completions", method: str = "POST"
) -> int:
    start, *_ = await messages(app, headers, path, method)
    return int(start["status"])


async def messages(app: ASGIApp, headers: Headers | None, path: str, method: str) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    await app(scope, receive, send)
    return sent


def passed_on(headers: Headers) -> Headers:
    application = Application()
    asyncio.run(status(ProxyGuard(application), headers))
    return application.received[0]


@pytest.mark.parametrize("value", [b"\xff", b"a b", b"a" * 129, b"", b"\xc3\xa9", b"a;b"])
def test_harmful_request_ids_are_replaced(value: bytes) -> None:
    [(name, passed)] = passed_on([(b"x-request-id", value)])
    assert name == b"x-request-id"
    assert passed.startswith(b"req-")


def test_a_harmless_request_id_is_kept_and_a_missing_one_made() -> None:
    assert passed_on([(b"x-request-id", b"my-id_1.2")]) == [(b"x-request-id", b"my-id_1.2")]
    [(_, made)] = passed_on([])
    assert made.startswith(b"req-")
    [(_, made)] = passed_on([(b"x-request-id", b"one"), (b"x-request-id", b"two")])
    assert made.startswith(b"req-")


@pytest.mark.parametrize(
    "name",
    [
        *(b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"x-session-id"),
        *(b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
    ],
)
def test_headers_that_serve_obeys_are_removed(name: bytes) -> None:
    assert [own for own, _ in passed_on([(name, b"1"), (b"accept", b"*/*")])] == [b"accept", b"x-request-id"]


def test_values_that_serve_cannot_decode_are_removed() -> None:
    assert [own for own, _ in passed_on([(b"traceparent", b"\xff"), (b"accept", b"*/*")])] == [
        b"accept",
        b"x-request-id",
    ]


def test_an_overload_is_refused_here() -> None:
    """Until something ends, but for the few requests that find out whether there is more capacity."""
    clock = Clock()
    application = Application()
    guard = ProxyGuard(application, admission=ProxyAdmission(clock=clock))

    async def scenario() -> None:
        application.hold = asyncio.Event()
        running = asyncio.create_task(status(guard))
        await asyncio.sleep(0)
        application.retry_after_s = 22.0
        assert await status(guard) == 503
        for _ in range(10):
            start, body = await messages(guard, None, "/v1/chat/completions", "POST")
            headers = dict(start["headers"])
            assert (start["status"], headers[b"x-request-id"][:4]) == (503, b"req-")
            assert 1 <= int(headers[b"retry-after"]) <= 120
            assert b"overloaded" in body["body"]
        assert len(application.received) == 2
        clock.now += 0.3
        assert [await status(guard) for _ in range(3)] == [503] * 3
        assert len(application.received) == 3
        application.hold.set()
        assert await running == 200
        application.retry_after_s = None
        assert await status(guard) == 200
        for path, method in (("/health", "GET"), ("/tokenize", "POST"), ("/v1/completions", "GET")):
            assert await status(guard, None, path, method) == 200

    asyncio.run(scenario())


class TestKeys:
    """Where applications require keys, requests without one have separate places."""

    KEY, RECORD = new_key("user")

    @pytest.fixture
    def guard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProxyGuard:
        monkeypatch.setattr("mpt_serve.deployments.proxy_guard._HOLD_WITHOUT_KEY_S", 0.0)
        append_line(tmp_path / "keys", self.RECORD)
        keys = (KeySource(file=str(tmp_path / "keys")),)
        self.application = Application()
        return ProxyGuard(self.application, ProxyLimits(max_running=2, keys=keys))

    @pytest.mark.parametrize("key", [None, "sk-wrong", f"{KEY[:-4]}ffff"], ids=["none", "wrong", "wrong with an id"])
    def test_a_flood_without_keys_takes_no_places_of_others(self, guard: ProxyGuard, key: str | None) -> None:
        wrong = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        right = [(b"x-api-key", self.KEY.encode())]

        async def scenario() -> None:
            assert await status(guard, right) == 200
            await status(guard, wrong)  # a wrong key is known after its first use
            self.application.received.clear()
            hold = self.application.hold = asyncio.Event()
            flood = [asyncio.create_task(status(guard, wrong)) for _ in range(100)]
            while not any(task.done() for task in flood):
                await asyncio.sleep(0)
            assert len(self.application.received) == 16
            refused = await messages(guard, wrong, "/v1/completions", "POST")
            headers = dict(refused[0]["headers"])
            assert (refused[0]["status"], headers[b"retry-after"], headers[b"x-request-id"][:4]) == (503, b"2", b"req-")
            mine = [asyncio.create_task(status(guard, right)) for _ in range(2)]
            while len(self.application.received) < 18:
                await asyncio.sleep(0)
            hold.set()
            assert await asyncio.gather(*mine) == [200, 200]
            assert sorted(await asyncio.gather(*flood)) == [200] * 16 + [503] * 84
            assert await status(guard, wrong) == 200  # there are places again

        asyncio.run(scenario())

    def test_requests_of_a_client_begin_one_after_the_other_while_others_have_fewer(
        self, guard: ProxyGuard, tmp_path: Path
    ) -> None:
        key, record = new_key("other")
        append_line(tmp_path / "keys", record)
        limits = ProxyLimits(keys=(KeySource(file=str(tmp_path / "keys")),))
        guard = ProxyGuard(self.application, limits, key="of the links", host="127.0.0.1")
        mine, others = ([(b"x-api-key", own.encode())] for own in (self.KEY, key))

        async def scenario() -> None:
            assert [await status(guard, own) for own in (mine, others)] == [200, 200]
            self.application.received.clear()
            hold = self.application.hold = asyncio.Event()
            many = [asyncio.create_task(status(guard, mine)) for _ in range(10)]
            while not self.application.received:
                await asyncio.sleep(0)
            one = asyncio.create_task(status(guard, others))
            while len(self.application.received) < 2:
                await asyncio.sleep(0)
            assert others[0] in self.application.received[1]
            hold.set()
            assert await asyncio.gather(one, *many) == [200] * 11
            assert guard._responses is not None
            guard._responses.close()

        asyncio.run(scenario())

    def test_keys_that_cannot_be_read_change_nothing(self, tmp_path: Path) -> None:
        keys = (KeySource(file=str(tmp_path / "nothing")),)
        guard = ProxyGuard(Application(), ProxyLimits(max_running=2, keys=keys))
        assert asyncio.run(status(guard)) == 200

    def test_a_check_that_takes_long_is_the_ingress_task(
        self, guard: ProxyGuard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def busy(store: KeyStore, key: str) -> None:
            raise BusyError("too many new API keys are being verified")

        monkeypatch.setattr(KeyStore, "verify", busy)
        assert asyncio.run(status(guard, [(b"x-api-key", self.KEY.encode())])) == 200
        assert len(self.application.received) == 1


def test_refused_requests_bodies_are_not_read() -> None:
    guard = ProxyGuard(Application(), ProxyLimits(max_running=1), admission=(full := ProxyAdmission(1)))
    assert full.begin()
    assert full.begin()  # finds out whether there is more capacity

    assert asyncio.run(status(guard, [(b"content-length", b"100")])) == 503


@pytest.mark.parametrize("path", ["/root/v1/completions", "/a/b/chat/completions", "/a/v1/messages"])
def test_requests_to_generate_are_known_behind_any_prefix(path: str) -> None:
    guard = ProxyGuard(Application(), ProxyLimits(max_running=1), admission=(full := ProxyAdmission(1)))
    assert full.begin()
    assert full.begin()
    assert asyncio.run(status(guard, None, path)) == 503


def test_a_path_that_serve_cannot_match_gets_an_error_of_the_api() -> None:
    application = Application()
    start, body = asyncio.run(messages(ProxyGuard(application), None, "*", "GET"))
    assert start["status"] == 404
    assert json.loads(body["body"])["error"]["code"] == "route_not_found"
    assert dict(start["headers"])[b"x-request-id"].startswith(b"req-")
    assert application.received == []


def test_another_503_is_the_applications() -> None:
    async def loading(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope)
        await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"5")]})

    calls: list[Scope] = []
    guard = ProxyGuard(loading)

    async def scenario() -> None:
        assert [await status(guard) for _ in range(2)] == [503, 503]

    asyncio.run(scenario())
    assert len(calls) == 2


def test_serve_calls_the_function_that_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PROXY_GUARD["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    monkeypatch.setattr("ray.serve._private.http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", path)
    monkeypatch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", AutoHTTPProtocol)  # put back afterwards
    found = configure_http_middlewares(HTTPOptions()).middlewares
    assert [middleware.cls for middleware in found] == [ProxyGuard, ProxyErrors]
    assert issubclass(uvicorn.protocols.http.auto.AutoHTTPProtocol, BoundedProtocol)


def test_a_question_to_the_server_is_answered_here() -> None:
    application = Application()
    start, *_ = asyncio.run(messages(ProxyGuard(application), None, "*", "OPTIONS"))
    assert start["status"] == 204
    assert not application.received


class Sender:
    """A client that sends the parts of a body when the test says so, to an application that keeps what it gets."""

    def __init__(self, guard: ProxyGuard, path: str = "/tokenize", headers: Headers | None = None) -> None:
        self.sent: list[Message] = []
        self.aborted = False
        self._parts: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", ABORT: self._abort}
        scope["headers"] = headers or [(b"transfer-encoding", b"chunked")]
        self.task = asyncio.create_task(guard(scope, self._parts.get, self._send))  # type: ignore[arg-type]

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def _abort(self) -> None:
        self.aborted = True

    async def send(self, body: bytes, *, more: bool = True) -> None:
        self._parts.put_nowait({"type": "http.request", "body": body, "more_body": more})
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        self._parts.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(self.task, 30)

    async def ended(self) -> int:
        await asyncio.wait_for(self.task, 30)
        return int(self.sent[0]["status"])

    @property
    def code(self) -> str:
        return str(json.loads(self.sent[1]["body"])["error"]["code"])


class Reading:
    """An application that reads one body, and answers when the test says so."""

    def __init__(self) -> None:
        self.bodies: list[Message] = []
        self.disconnects = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append(await receive())
        await self.answers.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        self.disconnects += (await receive())["type"] == "http.disconnect"


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def guarded(application: ASGIApp, **limits: Any) -> ProxyGuard:
    return ProxyGuard(application, ProxyLimits(bodies=Limits(**limits)))


def test_an_application_gets_a_body_when_it_is_complete() -> None:
    async def scenario() -> None:
        application = Reading()
        client = Sender(guarded(application))
        await client.send(b"ab")
        assert application.bodies == []
        await client.send(b"c", more=False)
        assert application.bodies == [{"type": "http.request", "body": b"abc", "more_body": False}]
        await client.leave()
        assert application.disconnects == 1
        assert await client.ended() == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions", "/anything"])
def test_bodies_beyond_a_limit_do_not_reach_serve(path: str) -> None:
    async def scenario() -> None:
        application = Reading()
        late = Sender(guarded(application, body_timeout_s=0.01), path)
        await late.send(b"a")
        assert (await late.ended(), late.code) == (408, "body_timeout")
        declared = Sender(guarded(application, max_body_bytes=10), path, [(b"content-length", b"11")])
        assert (await declared.ended(), declared.code) == (413, "request_too_large")
        large = Sender(guarded(application, max_body_bytes=10), path)
        await large.send(b"a" * 11)
        await large.send(b"a", more=False)
        assert (await large.ended(), large.code) == (413, "request_too_large")
        assert dict(large.sent[0]["headers"])[b"x-request-id"].startswith(b"req-")
        one_place = guarded(application, max_unread_bodies=1)
        first, second = Sender(one_place, path), Sender(one_place, path)
        assert (await first.ended(), first.code) == (503, "overloaded")
        await second.leave()
        assert second.sent == []
        assert application.bodies == []

    asyncio.run(scenario())


DECLARED = [(b"content-length", b"1000000")]
CHUNKED = [(b"transfer-encoding", b"chunked")]


class Refusing:
    """Guards that refuse a request for several reasons, and with what status."""

    @staticmethod
    def too_large(**limits: Any) -> tuple[ProxyGuard, str, int]:
        return guarded(Reading(), max_body_bytes=10, **limits), "/tokenize", 413

    @staticmethod
    def overloaded(**limits: Any) -> tuple[ProxyGuard, str, int]:
        admission = ProxyAdmission(1, clock=Clock())
        assert admission.begin()
        assert admission.begin()  # finds out whether there is more capacity
        bodies = ProxyLimits(bodies=Limits(**limits))
        return ProxyGuard(Reading(), bodies, admission=admission), "/v1/completions", 503


@pytest.mark.parametrize("refusing", [Refusing.too_large, Refusing.overloaded])
@pytest.mark.parametrize("headers", [DECLARED, CHUNKED])
def test_the_rest_of_a_refused_body_is_read_after_the_response(refusing: Any, headers: Headers) -> None:
    async def scenario() -> None:
        guard, path, status = refusing()
        for last in ("complete", "leaves"):
            client = Sender(guard, path, headers)
            await client.send(b"a" * 11)
            await wait_for(lambda client=client: len(client.sent) == 2)  # all of the response that has contents
            assert client.sent[0]["status"] == status
            assert int(dict(client.sent[0]["headers"])[b"content-length"]) == len(client.sent[1]["body"])
            for _ in range(3):
                await client.send(b"a" * 1000)
            assert not client.task.done()
            assert not client.aborted
            await (client.send(b"", more=False) if last == "complete" else client.leave())
            assert await client.ended() == status
            assert client.sent[2] == {"type": "http.response.body", "body": b""}
            assert not client.aborted

    asyncio.run(scenario())


@pytest.mark.parametrize("refusing", [Refusing.too_large, Refusing.overloaded])
def test_refused_bodies_have_limited_time_and_places(refusing: Any) -> None:
    async def scenario() -> None:
        guard, path, status = refusing(body_timeout_s=0.01)
        late = Sender(guard, path, DECLARED)
        assert await late.ended() == status
        assert late.aborted
        guard, path, status = refusing(max_unread_bodies=2)
        first, second = (Sender(guard, path, DECLARED) for _ in range(2))
        await wait_for(lambda: len(first.sent) == len(second.sent) == 2)
        third = Sender(guard, path, DECLARED)
        assert await third.ended() == status
        assert third.aborted
        assert not first.task.done()
        await first.leave()
        await second.leave()

    asyncio.run(scenario())


def test_refused_bodies_are_read_one_part_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def sleep_recorded(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(0)

    async def scenario() -> None:
        guard, path, _ = Refusing.too_large()
        clients = [Sender(guard, path, DECLARED) for _ in range(4)]
        monkeypatch.setattr(asyncio, "sleep", sleep_recorded)
        for client in clients:
            for _ in range(8):
                await client.send(b"a" * 2**18)
            await client.send(b"", more=False)
            assert await client.ended() == 413

    asyncio.run(scenario())
    assert sum(pauses) == pytest.approx(4 * 8 * 2**18 / (32 * 2**20))


def test_bodies_count_until_the_application_answers() -> None:
    async def scenario() -> None:
        application = Reading()
        application.answers.clear()
        guard = guarded(application, max_unread_body_bytes=10)
        first = Sender(guard)
        await first.send(b"a" * 8, more=False)
        second = Sender(guard)
        await second.send(b"a" * 8, more=False)
        assert second.task.done()  # there is nothing left to wait for
        assert (await second.ended(), second.code) == (503, "overloaded")
        application.answers.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert first.sent[0]["status"] == 200
        third = Sender(guard)
        await third.send(b"a" * 8, more=False)
        assert len(application.bodies) == 2
        await first.leave()
        await third.leave()

    asyncio.run(scenario())


def test_unfinished_bodies_take_no_place_from_requests_to_generate() -> None:
    async def scenario() -> None:
        application = Reading()
        admission = ProxyAdmission(1)
        guard = ProxyGuard(application, admission=admission)
        silent = [Sender(guard, "/v1/completions") for _ in range(5)]
        await asyncio.sleep(0)
        complete = Sender(guard, "/v1/completions")
        await complete.send(b"{}", more=False)
        assert complete.sent[0]["status"] == 200
        for client in [*silent, complete]:
            await client.leave()
        assert admission.running == 0

    asyncio.run(scenario())
