"""Requests that Serve's proxy has no response to."""

import asyncio
import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from mpt_serve.deployments.lost_requests import RespondToAll


def messages(app: RespondToAll) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("no body is read")

    headers = [(b"x-request-id", b"mine"), (b"accept", b"*/*")]
    asyncio.run(app({"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}, receive, send))
    return sent


@pytest.mark.parametrize("raises", [False, True])
def test_a_request_whose_replica_died_gets_a_503(raises: bool) -> None:
    async def died(scope: Scope, receive: Receive, send: Send) -> None:
        if raises:
            raise ConnectionError

    start, body = messages(RespondToAll(died))
    headers = dict(start["headers"])
    assert (start["status"], headers[b"x-request-id"], headers[b"retry-after"]) == (503, b"mine", b"1")
    assert json.loads(body["body"])["error"]["code"] == "loading"


def test_an_error_in_the_middle_of_a_response_is_left_to_the_web_server() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ConnectionError

    with pytest.raises(ConnectionError):
        messages(RespondToAll(breaks))


def test_what_is_no_request_passes() -> None:
    async def ends(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def unused(*_: object) -> Message:
        raise AssertionError

    asyncio.run(RespondToAll(ends)({"type": "lifespan"}, unused, unused))  # type: ignore[arg-type]
