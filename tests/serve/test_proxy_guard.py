"""The middleware of Serve's proxy: harmless headers in, and refusals without the application's work."""

import asyncio

import pytest
from ray.serve._private.http_util import configure_http_middlewares
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments.proxy_errors import ProxyErrors
from mpt_serve.deployments.proxy_guard import ProxyGuard
from mpt_serve.one_loop import PROXY_GUARD
from mpt_serve.openai.gate import Gate
from mpt_serve.openai.server_metrics import ServerMetrics

Headers = list[tuple[bytes, bytes]]


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


def test_refusals_are_repeated_for_a_moment_only() -> None:
    now = 0.0
    application = Application()
    guard = ProxyGuard(application, clock=lambda: now)

    async def scenario() -> None:
        nonlocal now
        application.retry_after_s = 20.0
        assert await status(guard) == 503
        for _ in range(10):
            start, body = await messages(guard, None, "/v1/chat/completions", "POST")
            headers = dict(start["headers"])
            assert (start["status"], headers[b"x-request-id"][:4]) == (503, b"req-")
            assert 10 <= int(headers[b"retry-after"]) <= 30
            assert b"overloaded" in body["body"]
        assert len(application.received) == 1
        for path, method in (("/health", "GET"), ("/tokenize", "POST"), ("/v1/completions", "GET")):
            assert await status(guard, None, path, method) == 200
        application.retry_after_s = None
        now += 0.3
        assert await status(guard) == 200

    asyncio.run(scenario())


def test_a_request_that_ends_makes_the_application_decide_again() -> None:
    application = Application()
    guard = ProxyGuard(application, clock=lambda: 0.0)

    async def scenario() -> None:
        application.hold = asyncio.Event()
        running = asyncio.create_task(status(guard))
        await asyncio.sleep(0)
        application.retry_after_s = 20.0
        assert [await status(guard) for _ in range(3)] == [503] * 3
        assert len(application.received) == 2
        application.hold.set()
        assert await running == 200
        application.retry_after_s = None
        assert await status(guard) == 200

    asyncio.run(scenario())


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
    found = configure_http_middlewares(HTTPOptions()).middlewares
    assert [middleware.cls for middleware in found] == [ProxyGuard, ProxyErrors]


def test_a_question_to_the_server_is_answered_here() -> None:
    application = Application()
    start, *_ = asyncio.run(messages(ProxyGuard(application), None, "*", "OPTIONS"))
    assert start["status"] == 204
    assert not application.received
