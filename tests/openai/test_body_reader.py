"""Bodies that arrive slowly, late, never, or all at once."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from loopback_server import Server, serving
from starlette.requests import Request
from starlette.types import ASGIApp, Message
from test_errors import check_error
from test_gate import Sent, forever, scope

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app
from mpt_serve.openai.body_reader import BodyReader, Turns

PATHS = ["/v1/completions", "/tokenize"]


def part(content: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


class Client:
    """A request whose body arrives when the test says so."""

    def __init__(self, app: ASGIApp, path: str = "/tokenize") -> None:
        self.sent = Sent()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.create_task(app(scope(path), self._messages.get, self.sent))  # type: ignore[arg-type]

    async def send(self, content: bytes, more: bool = True) -> None:
        self._messages.put_nowait(part(content, more))
        for _ in range(5):
            await asyncio.sleep(0)

    async def ended(self) -> Sent:
        await asyncio.wait_for(self.task, 30)
        return self.sent


def run(scenario: Callable[[ASGIApp], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        await scenario(create_app(FakeBackend(), Limits(**limits)))

    asyncio.run(main())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("begun", [b"", b'{"prompt": '])
def test_an_unfinished_body_is_a_408(path: str, begun: bytes) -> None:
    async def scenario(app: ASGIApp) -> None:
        client = Client(app, path)
        await client.send(begun)
        sent = await client.ended()
        assert (sent.status, sent.code) == (408, "body_timeout")
        assert (b"connection", b"close") in sent.messages[0]["headers"]

    run(scenario, body_timeout_s=0.05)


def test_the_deadline_is_the_whole_bodys() -> None:
    async def scenario(app: ASGIApp) -> None:
        client = Client(app)
        while not client.task.done():
            await client.send(b" ")
            await asyncio.sleep(0.01)
        assert client.sent.status == 408

    run(scenario, body_timeout_s=0.1)


def test_a_body_that_arrives_in_time_has_the_requests_own_deadline_afterwards() -> None:
    backend = FakeBackend(pause_s=0.3)
    with serving(backend, Limits(body_timeout_s=1)) as server:
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "abcdef"})
        assert response.json()["choices"][0]["text"] == "abcdef"


def test_the_client_that_is_silent_for_longest_loses_its_place() -> None:
    async def scenario(app: ASGIApp) -> None:
        first, second = Client(app), Client(app)
        await second.send(b'{"prompt"')
        await first.send(b'{"prompt"')  # now the second is silent for longer
        third = Client(app)
        sent = await second.ended()
        assert (sent.status, sent.code) == (503, "overloaded")
        assert (b"connection", b"close") in sent.messages[0]["headers"]
        await third.send(b'{"prompt": "a"}', more=False)
        await first.send(b': "a"}', more=False)
        assert [(await client.ended()).status for client in (first, third)] == [200, 200]

    run(scenario, max_unread_bodies=2)


def test_a_body_whose_last_bytes_have_come_is_read_though_another_takes_its_place() -> None:
    """Both happen in one turn of the event loop, the other body's begin first."""

    async def scenario() -> None:
        reader = BodyReader(Limits(max_unread_bodies=1))
        messages: asyncio.Queue[Message] = asyncio.Queue()
        first = asyncio.create_task(reader.read_json_object(Request(scope("/tokenize"), messages.get)))
        await asyncio.sleep(0)
        second = asyncio.create_task(reader.read_json_object(Request(scope("/tokenize"), forever)))
        messages.put_nowait(part(b'{"prompt": "a"}', more=False))
        assert await first == {"prompt": "a"}
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_unfinished_bodies_do_not_stop_others() -> None:
    """Sockets with a part of a body, many times the places: every complete request in between is served."""
    with serving(limits=Limits(max_unread_bodies=8)) as server:
        port = int(server.url.rpartition(":")[2])
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        silent = []
        with httpx.Client(base_url=server.url) as http:
            for _ in range(30):
                silent.append(socket.create_connection(("127.0.0.1", port)))
                silent[-1].sendall(head)
                assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
            assert http.get("/health").status_code == 200
        answers = [connection.recv(4096) for connection in silent[:20]]
        assert all(answer.startswith(b"HTTP/1.1 503") for answer in answers)
        assert b"connection: close" in answers[0].lower()
        for connection in silent:
            connection.close()


def test_all_bodies_together_are_bounded() -> None:
    async def scenario(app: ASGIApp) -> None:
        first, second = Client(app), Client(app)
        await first.send(b'{"prompt": "' + b"a" * 700)
        await second.send(b'{"prompt": "' + b"a" * 700)
        sent = await second.ended()
        assert (sent.status, sent.code) == (503, "overloaded")
        await first.send(b'"}', more=False)
        assert (await first.ended()).status == 200
        third = Client(app)
        await third.send(b'{"prompt": "' + b"a" * 700 + b'"}', more=False)
        assert (await third.ended()).status == 200

    run(scenario, max_unread_body_bytes=1000)


def test_one_body_may_take_all_the_memory() -> None:
    with serving(limits=Limits(max_unread_body_bytes=10)) as server:
        assert httpx.post(f"{server.url}/tokenize", json={"prompt": "a" * 50}).status_code == 200


def test_large_bodies_are_parsed_one_after_the_other_with_pauses() -> None:
    async def scenario() -> None:
        turns, running, most, order = Turns(share=0.5), 0, 0, list[int]()

        def work(number: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            order.append(number)
            running -= 1
            return number

        tasks = [asyncio.create_task(turns.run(lambda number=number: work(number))) for number in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for result in results if not isinstance(result, BaseException)] == [0, 1, 2, 4, 5]
        assert (most, order) == (1, [0, 1, 2, 4, 5])

        def fail() -> None:
            raise KeyError

        with pytest.raises(KeyError):
            await turns.run(fail)
        assert await turns.run(lambda: 7) == 7

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_large_body_is_parsed_as_a_small_one(server: Server, http: httpx.Client) -> None:
    text = "a" * 100_000
    assert http.post("/tokenize", json={"prompt": text}).json()["count"] == 100_000
    check_error(http.post("/tokenize", content=b"{" * 100_000, headers={"content-type": "application/json"}), 400)
    body = json.dumps({"prompt": "ab", "other": text})
    response = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.json()["choices"][0]["text"] == "ab"
