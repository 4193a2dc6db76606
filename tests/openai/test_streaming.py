"""Events that a callback of the event loop sends, without a task, as long as the client keeps up."""

import asyncio
import json
from collections.abc import Set
from typing import Any

import pytest
from fake_backend import FakeBackend

from mpt_serve.engine.request import Delta
from mpt_serve.openai.app import create_app
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.sse import EventStream

JSON = [(b"content-type", b"application/json")]
TEXT = "A whale swims \u2028 and \x85 rests."


class PacedBackend(FakeBackend):
    """Gives one byte of a text at a time, one for each release of `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Semaphore(0)

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        ids = self.tokenizer.encode(TEXT)
        for number, token_id in enumerate(ids):
            await self.go.acquire()
            reason: Any = "length" if number == len(ids) - 1 else None
            for index in range(request.params.n):
                on_delta(Delta((token_id,), reason, None, 1, index=index))


class Client:
    """An ASGI server whose client may stop reading."""

    def __init__(self, body: bytes) -> None:
        self.body = b""
        self.reads = asyncio.Event()
        self.reads.set()
        self.by_task: list[bool] = []  # for each message: was it a task that sent it?
        self._request = [{"type": "http.request", "body": body}]

    async def receive(self) -> Any:
        if not self._request:
            await asyncio.Event().wait()
        return self._request.pop()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.by_task.append(asyncio.current_task() is not None)
        self.body += message.get("body", b"")


async def stream(path: str, body: bytes, pauses: bool) -> Client:
    backend, client = PacedBackend(), Client(body)
    scope = {"type": "http", "method": "POST", "path": path, "headers": JSON, "query_string": b"", "state": {}}
    served = asyncio.ensure_future(create_app(backend)(scope, client.receive, client.send))
    tokens = len(backend.tokenizer.encode(TEXT))
    for number in range(tokens):
        if pauses and number % 5 == 1:
            client.reads.clear()
        backend.go.release()
        for _ in range(20):
            await asyncio.sleep(0)
        if pauses and number % 5 == 4:
            client.reads.set()
            for _ in range(20):
                await asyncio.sleep(0)
    client.reads.set()
    await served
    return client


@pytest.mark.parametrize("pauses", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("usage", ["", ',"stream_options":{"include_usage":true}'])
def test_the_text_is_the_same_however_the_client_reads(pauses: bool, n: int, usage: str) -> None:
    body = f'{{"model":"mpt-echo","prompt":[1],"stream":true,"max_tokens":100,"n":{n}{usage}}}'.encode()
    client = asyncio.run(stream("/v1/completions", body, pauses))
    assert _texts(client.body, n) == [TEXT] * n
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert (client.body.count(b'"usage":null') > 0) == bool(usage)
    if not pauses:  # the start, the first token, the last one, and the end are a task's
        assert client.by_task.count(False) >= len(set(TEXT.encode())) // 2
        assert client.by_task.count(True) <= 6


def _texts(body: bytes, n: int) -> list[str]:
    texts = [""] * n
    for event in body.decode().split("\n\n"):
        if event.startswith("data: {"):
            for choice in json.loads(event[6:])["choices"]:
                texts[choice["index"]] += choice["text"]
    return texts


def test_what_remains_of_a_message_is_awaited() -> None:
    async def scenario() -> list[str]:
        sent: list[str] = []
        reads = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append("begun")
            await reads.wait()
            await asyncio.sleep(0)
            sent.append("done")

        rest = EventStream(send).send_now(b"x")
        assert rest is not None
        assert sent == ["begun"]
        reads.set()
        await rest
        return sent

    assert asyncio.run(scenario()) == ["begun", "done"]
