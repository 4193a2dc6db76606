"""Events that a callback of the event loop sends, without a task, as long as the client keeps up."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Set
from typing import Any

import pytest
from fake_backend import FakeBackend

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.request import Delta
from mpt_serve.openai.app import create_app
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.disconnect import ClientDisconnectedError
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


@pytest.mark.parametrize("ends", ["cancelled", "failed", "closed"])
def test_what_remains_of_a_message_ends_as_its_task_does(ends: str) -> None:
    """Whatever ends the wait reaches `send`, whose clean-up may wait in turn; OSError is the client's disconnect."""

    async def scenario() -> list[str]:
        cleaned: list[str] = []
        reads: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            try:
                await reads
            except BaseException as error:
                cleaned.append(type(error).__name__)
                if ends != "closed":
                    await asyncio.sleep(0)
                    cleaned.append("done")
                raise

        rest = EventStream(send).send_now(b"x")
        assert rest is not None

        async def wait() -> None:
            await rest

        if ends == "closed":
            waiting = wait()
            waiting.send(None)
            waiting.close()
            return cleaned
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if ends == "cancelled":
            task.cancel()
        else:
            reads.set_exception(BrokenPipeError())
        with pytest.raises(asyncio.CancelledError if ends == "cancelled" else ClientDisconnectedError):
            await task
        return cleaned

    expected = {"cancelled": ["CancelledError", "done"], "failed": ["BrokenPipeError", "done"]}
    assert asyncio.run(scenario()) == expected.get(ends, ["GeneratorExit"])


class ScriptedBackend(FakeBackend):
    """Runs a script between the first delta, of the text "a", and the last one, of "z"."""

    def __init__(self, script: Callable[[OnDelta], Awaitable[None]]) -> None:
        super().__init__()
        self._script = script

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        on_delta(Delta(tuple(self.tokenizer.encode("a")), None, None, 1))
        await _turns()  # now the callback sends what comes
        await self._script(on_delta)
        await _turns()
        on_delta(Delta(tuple(self.tokenizer.encode("z")), "length", None, 1))


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _served(backend: FakeBackend, client: Client, limits: Limits) -> None:
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": JSON, "query_string": b""}
    app = create_app(backend, limits)
    asyncio.run(asyncio.wait_for(app(scope | {"state": {}}, client.receive, client.send), 30))  # type: ignore[arg-type]


def test_a_part_with_many_tokens_is_encoded_by_the_task_and_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next part arrives while a thread encodes it."""
    monkeypatch.setattr("mpt_serve.openai.streaming.MANY_TOKENS", 2)
    works: list[Any] = []
    released = asyncio.Event()
    to_thread = asyncio.to_thread

    async def held(work: Any) -> Any:
        works.append(work)
        await released.wait()
        return await to_thread(work)

    monkeypatch.setattr("mpt_serve.openai.streaming.asyncio.to_thread", held)
    backend = FakeBackend()

    async def script(on_delta: OnDelta) -> None:
        for text in ("b", "cdef", "g"):
            on_delta(Delta(tuple(backend.tokenizer.encode(text)), None, None, 1))
            await _turns()
        released.set()

    client = Client(b'{"model":"mpt-echo","prompt":[1],"stream":true,"max_tokens":100,"return_token_ids":true}')
    _served(ScriptedBackend(script), client, Limits())
    assert _texts(client.body, 1) == ["abcdefgz"]
    assert len(works) == 1


@pytest.mark.parametrize("first", ["part", "comment"])
def test_a_part_that_comes_as_a_comment_falls_due_is_sent_once(first: str) -> None:
    """The callback and the timer of the comment run in one turn of the event loop, in either order."""
    limits = Limits(keep_alive_s=0.1)
    client = Client(b'{"model":"mpt-echo","prompt":[1],"stream":true,"max_tokens":100}')
    backend = FakeBackend()

    async def script(on_delta: OnDelta) -> None:
        part = Delta(tuple(backend.tokenizer.encode("b")), None, None, 1)
        client.reads.clear()  # the callback has to leave the rest to the task
        if first == "part":
            on_delta(part)
            time.sleep(limits.keep_alive_s)
        else:
            time.sleep(limits.keep_alive_s)
            await asyncio.sleep(0)  # the timer follows this turn's tasks
            on_delta(part)
        await _turns()
        client.reads.set()

    _served(ScriptedBackend(script), client, limits)
    assert _texts(client.body, 1) == ["abz"]
    assert client.body.endswith(b"data: [DONE]\n\n")
