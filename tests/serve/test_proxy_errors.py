"""What clients get where Serve's proxy answers for itself."""

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments.proxy_errors import ProxyErrors

TEXT = b"text/plain; charset=utf-8"


def proxy(status: int, kind: bytes = TEXT, fail_after: int | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", kind), (b"x-request-id", b"mine"), (b"content-length", b"9")]
        messages: list[Message] = [
            {"type": "http.response.start", "status": status, "headers": headers},
            {"type": "http.response.body", "body": b"Not ", "more_body": True},
            {"type": "http.response.body", "body": b"found", "more_body": False},
        ]
        for number, message in enumerate(messages):
            if number == fail_after:
                raise RuntimeError("a secret")
            await send(message)

    return app


def respond(app: ASGIApp, kind: str = "http", accept: bytes = b"*/*") -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("no body is read")

    scope = {"type": kind, "method": "GET", "path": "/x", "headers": [(b"accept", accept)]}
    asyncio.run(ProxyErrors(app)(scope, receive, send))
    return sent


def error(messages: list[Message]) -> tuple[int, Any, dict[bytes, bytes]]:
    start, body = messages
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert int(headers[b"content-length"]) == len(body["body"])
    return start["status"], json.loads(body["body"])["error"], headers


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (404, 503, "loading"),
        (408, 504, "timeout"),
        (429, 503, "overloaded"),
        (500, 500, "internal_error"),
        (503, 503, "overloaded"),
    ],
)
def test_plain_text_becomes_an_error_of_the_api(status: int, expected: int, code: str) -> None:
    found, body, headers = error(respond(proxy(status)))
    assert (found, body["code"]) == (expected, code)
    assert headers[b"x-request-id"] == b"mine"
    assert (b"retry-after" in headers) == (expected == 503)


def test_a_browser_gets_a_page_while_there_is_no_application() -> None:
    start, body = respond(proxy(404), accept=b"text/html,application/xhtml+xml,*/*;q=0.8")
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"]) == (503, b"text/html; charset=utf-8")
    assert headers[b"x-request-id"] == b"mine"
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'")
    assert b'http-equiv="refresh"' in body["body"]
    assert error(respond(proxy(503), accept=b"text/html"))[0] == 503


@pytest.mark.parametrize(("status", "kind"), [(400, b"application/json"), (200, TEXT)])
def test_the_applications_responses_stay(status: int, kind: bytes) -> None:
    start, first, second = respond(proxy(status, kind))
    assert (start["status"], first["body"] + second["body"]) == (status, b"Not found")


def test_what_the_proxy_raises_becomes_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "ray.serve"):
        found, body, _ = error(respond(proxy(200, fail_after=0)))
    assert (found, body["code"]) == (500, "internal_error")
    assert "secret" not in body["message"]


def test_an_error_in_the_middle_is_left_to_the_server() -> None:
    with pytest.raises(RuntimeError):
        respond(proxy(200, fail_after=1))


def test_other_protocols_pass_through() -> None:
    assert len(respond(proxy(404), "websocket")) == 3
