"""What only an ASGI server can do to the application, and uvicorn does not."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from fake_backend import FakeBackend
from garbage import leaving_at_most
from starlette.types import ASGIApp, Message

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app
from mpt_serve.openai.envelope import Envelope
from mpt_serve.openai.http_versions import HttpVersions
from mpt_serve.openai.request_log import RequestLog
from mpt_serve.openai.root_path import RootPath
from mpt_serve.openai.route_names import RouteNames
from mpt_serve.openai.server_metrics import ServerMetrics
from mpt_serve.openai.sse import event

GONE = {"type": "http.disconnect"}
STREAM = {"prompt": "abcdef", "stream": True}


def body(content: Any) -> Message:
    return {"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}


class Call:
    """One request: what the application receives, and what it sends until `broken_after` messages."""

    def __init__(self, received: Iterable[Message], broken_after: int | None = None) -> None:
        self.sent: list[Message] = []
        self._received = list(received)
        self._broken_after = broken_after

    async def receive(self) -> Message:
        if not self._received:
            await asyncio.Event().wait()
        return self._received.pop(0)

    async def send(self, message: Message) -> None:
        if len(self.sent) == self._broken_after:
            raise OSError("nobody listens")
        self.sent.append(message)

    async def run(self, app: ASGIApp, path: str = "/v1/completions") -> list[Message]:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await asyncio.wait_for(app(scope, self.receive, self.send), 30)
        return self.sent


def run(backend: FakeBackend, call: Call, path: str = "/v1/completions") -> list[Message]:
    return asyncio.run(call.run(create_app(backend), path))


@pytest.mark.parametrize("broken_after", [0, 1, 2])
def test_send_that_fails_means_the_client_left(broken_after: int) -> None:
    backend = FakeBackend(hang_after=3)
    assert len(run(backend, Call([body(STREAM)], broken_after))) == broken_after
    assert not backend.running
    assert len(backend.cancelled) == 1


def test_send_that_fails_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend(fail_after=1, pause_s=0.001)
    assert len(run(backend, Call([body(STREAM)], broken_after=2))) == 2
    assert not backend.running


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_client_that_leaves_while_sending_gets_nothing(path: str) -> None:
    assert run(FakeBackend(), Call([{"type": "http.request", "body": b"{", "more_body": True}, GONE]), path) == []


def test_messages_after_the_body_are_not_a_disconnect() -> None:
    messages = run(FakeBackend(), Call([body({"prompt": "ab"}), {"type": "http.request", "body": b""}]))
    assert json.loads(messages[1]["body"])["choices"][0]["text"] == "ab"


def test_server_that_cancels_the_request_ends_it_in_the_engine() -> None:
    backend = FakeBackend(hang_after=1)

    async def cancel() -> None:
        task = asyncio.create_task(Call([body(STREAM)]).run(create_app(backend)))
        while not backend.running:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not backend.running
    assert len(backend.cancelled) == 1


def test_text_before_a_failure_is_sent() -> None:
    messages = run(FakeBackend(fail_after=2, ids_per_delta=2), Call([body(STREAM)]))
    sent = b"".join(message.get("body", b"") for message in messages).decode()
    assert "".join(json.loads(e[6:])["choices"][0]["text"] for e in sent.split("\n\n") if '"text":' in e) == "abcd"
    assert '"internal_error"' in sent


@pytest.mark.parametrize(
    "wrap",
    [
        lambda app: Envelope(app, Limits(), ServerMetrics()),
        lambda app: RequestLog(app, RouteNames([]), ServerMetrics()),
        HttpVersions,
        RootPath,
    ],
)
def test_other_protocols_pass_through(wrap: Callable[[ASGIApp], ASGIApp], caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["type"])

    with caplog.at_level("DEBUG", "mpt_serve"):
        asyncio.run(wrap(inner)({"type": "lifespan"}, Call([]).receive, Call([]).send))
    assert calls == ["lifespan"]
    assert not caplog.records


def test_exception_after_the_status_is_left_to_the_server() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half a response")

    with pytest.raises(RuntimeError, match="half a response"):
        asyncio.run(Call([]).run(Envelope(inner, Limits(), ServerMetrics())))


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\u2029", "\v", "\f", "\x1c", "\x1d", "\x1e"])
def test_an_event_is_one_line_to_every_reader(end: str) -> None:
    text = event({"text": f"a{end}é"}).decode()
    assert text.splitlines() == [text[:-2], ""]
    assert json.loads(text.removeprefix("data: ")) == {"text": f"a{end}é"}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/completions", {"prompt": "abc"}),
        ("/v1/completions", STREAM),
        ("/v1/completions", {**STREAM, "logprobs": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abc"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abc"}], "stream": True}),
        ("/v1/responses", {"input": "abc", "stream": True}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4, "model": "mpt-echo"}),
        ("/v1/embeddings", {"input": "abc"}),
        ("/v1/completions", {"prompt": "abc", "max_tokens": -1}),
        ("/v1/completions", {"prompt": "abc" * 100}),
    ],
)
def test_a_request_leaves_nothing_to_the_garbage_collector(path: str, content: dict[str, Any]) -> None:
    """What it leaves would be collected with that of hundreds of others: all streams stop for tens of milliseconds."""

    async def scenario() -> None:
        app = create_app(FakeBackend())
        await Call([body(content)]).run(app, path)
        with leaving_at_most(19):
            for _ in range(20):
                await Call([body(content)]).run(app, path)

    asyncio.run(scenario())
