"""Clients that leave, from their sockets to the engine: all that is ours in between, without a started Serve.

How soon the engine knows is counted in its steps. So that this says the same at any speed of the machine, a step lasts
at least as long as a few turns of the event loop, however long those take.
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop
import waiting
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.configuration.limits import Limits
from mpt_serve.deployments.admission import Admission
from mpt_serve.deployments.delta_link import delta_links
from mpt_serve.deployments.generator import Generator
from mpt_serve.deployments.proxy_connections import BoundedProtocol, Connections
from mpt_serve.deployments.proxy_guard import ProxyGuard
from mpt_serve.deployments.readiness import Waiting
from mpt_serve.deployments.replica_updates import ReplicaUpdates
from mpt_serve.deployments.response_link import LinkedResponses
from mpt_serve.deployments.response_wire import LINKED_HEADER
from mpt_serve.deployments.serve_backend import ServeBackend
from mpt_serve.deployments.version import Version
from mpt_serve.engine import Engine, EngineConfig
from mpt_serve.engine.inbox import Abort
from mpt_serve.one_loop import LINK_KEY_VARIABLE
from mpt_serve.openai.app import create_app
from mpt_serve.openai.backend import ModelInfo, Readiness
from mpt_serve.text.tokenizer import TextTokenizer

CLIENTS = 200
RUNNING = 64  # the others wait in the engine
STEP_TURNS = 3  # the Ingress cancels a task, which ends and sends a message, which the Generator reads
LOOPBACK = "127.0.0.1"
KEY = "a-key"
SETTINGS = EngineConfig(max_num_seqs=RUNNING, pre_compile=False, speculation="none")
PATIENT = Limits(first_token_wait_s=600, keep_alive_s=600)


class SteppedEngine:
    """Makes an engine's steps wait for turns of the event loop, and notes at which step it takes each abort."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begins = threading.Event()  # until then it takes no step
        self.taken: dict[str, int] = {}
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._turn, self._abort = engine._pipeline.turn, engine._requests.abort
        monkeypatch.setattr(engine._pipeline, "turn", self._late_turn)
        monkeypatch.setattr(engine._requests, "abort", self._note_abort)

    @property
    def step(self) -> int:
        return self._engine.stats().steps

    def _late_turn(self) -> Any:
        assert self.begins.wait(120)
        for _ in range(STEP_TURNS):
            passed = threading.Event()
            self._loop.call_soon_threadsafe(self._loop.call_soon, passed.set)  # a whole turn after this one
            assert passed.wait(120)
        return self._turn()

    def _note_abort(self, item: Abort) -> None:
        self.taken.setdefault(item.request_id.partition("/")[0], self.step)
        self._abort(item)


class Replica:
    """The handle of one Generator replica. Serve takes forever to pass on that a call is cancelled."""

    def __init__(self, generator: Generator) -> None:
        self.generate = SimpleNamespace(remote=self._call)
        self.calls: list[asyncio.Task[None]] = []
        self._generator = generator

    def options(self, **_: Any) -> "Replica":
        return self

    def _call(self, *arguments: Any, **options: Any) -> "Call":
        call = Call()
        self.calls.append(asyncio.create_task(call.run(self._generator.generate(*arguments, **options))))
        return call


class Call:
    def __init__(self) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    async def run(self, items: AsyncIterator[Any]) -> None:
        async for item in items:
            self._items.put_nowait(item)
        self._items.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (item := await self._items.get()) is not None:
            yield item

    def cancel(self) -> None:
        pass


class Client(asyncio.Protocol):
    """A client that requests a long output and reads what comes."""

    def __init__(self, number: int, max_tokens: int = 400) -> None:
        self.streams = number % 4 != 0
        self.received = False
        self.data = b""
        self.closed = False
        self.transport: Any = None
        body = {"prompt": f"client {number}", "max_tokens": max_tokens, "ignore_eos": True, "stream": self.streams}
        content = json.dumps(body)
        self._request = (
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"x-request-id: {number}\r\ncontent-length: {len(content)}\r\n\r\n{content}"
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        self.received = self.received or b"data: {" in data
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True


class Server:
    """A proxy, an Ingress and a Generator on one event loop.

    What streams over a link must end over it: Serve passes on the disconnects of all other clients.
    left_at: the steps at which the Ingress saw its clients leave, by their numbers.
    """

    def __init__(self, engine: Engine, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(LINK_KEY_VARIABLE, KEY)
        self.engine = SteppedEngine(engine, monkeypatch)
        self.left_at: dict[str, int] = {}
        self.generator = Generator.__new__(Generator)  # its constructor asks Ray for its name
        self.generator._engine = engine
        self.generator._tracing = None
        self.generator._links = delta_links(engine.cancel)
        engine.on_delivered = self.generator._links.flush
        self.replica: Any = Replica(self.generator)
        self.backend = self._backend(text, engine.max_model_len)
        self.ingress = LinkedResponses(self._noting(create_app(self.backend, PATIENT)))
        self.proxy = ProxyGuard(self._serve, key=KEY, host=LOOPBACK)

    def _backend(self, text: TextTokenizer, max_model_len: int) -> ServeBackend:
        async def encode(prompt: str, *_: bool) -> list[int]:
            return text.encode(prompt)

        tokenizer: Any = SimpleNamespace(encode=SimpleNamespace(remote=encode))
        info = ModelInfo(id="m", created=0, max_model_len=max_model_len, vocab_len=text.vocab_len)
        limits = Admission(CLIENTS, 100_000), ReplicaUpdates(()), Version("s", "m"), Waiting(1.0, CLIENTS)
        backend = ServeBackend(info, text, tokenizer, self.replica, *limits)
        backend.resize(CLIENTS)
        backend.watch.readiness = Readiness(ready=True)
        backend.listen(LOOPBACK)
        return backend

    def _noting(self, app: ASGIApp) -> ASGIApp:
        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            async def noting_receive() -> Message:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left_at.setdefault(dict(scope["headers"])[b"x-request-id"].decode(), self.engine.step)
                return message

            await app(scope, noting_receive, send)

        return noting

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        linked = False

        async def carry(message: Message) -> None:
            nonlocal linked
            if LINKED_HEADER in dict(message.get("headers", ())):
                linked = True
            await send(message)

        async def carried_receive() -> Message:
            message = await receive()
            if linked and message["type"] == "http.disconnect":
                await asyncio.Event().wait()
            return message

        await self.ingress(scope, carried_receive, carry)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Serve HTTP on the yielded port."""
        with socket.create_server((LOOPBACK, 0), backlog=CLIENTS) as listener:
            http = type("Bounded", (BoundedProtocol,), {"connections_of_proxy": Connections(PATIENT, 2 * CLIENTS)})
            config = uvicorn.Config(self.proxy, log_level="warning", lifespan="off", ws="none", http=http)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                await until(lambda: server.started)
                yield listener.getsockname()[1]
            finally:
                self.engine.begins.set()
                server.should_exit = True
                await serving
                for link in (*self.generator._links._open, *self.ingress._links._open):
                    link.close()
                self.backend._generator_replicas.receiver.close()
                assert self.proxy._responses is not None
                self.proxy._responses.close()
                await asyncio.sleep(0)


until = partial(waiting.until, within_s=120)


@pytest.mark.timeout(300)
def test_200_that_leave_at_once_end_within_two_steps_of_the_engine(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TextTokenizer.from_folder(tiny_checkpoint)

    async def scenario(engine: Engine) -> Server:
        server = Server(engine, text, monkeypatch)
        loop = asyncio.get_running_loop()
        async with server.listening() as port:
            clients = [Client(number) for number in range(CLIENTS)]
            for client in clients:
                await loop.create_connection(lambda client=client: client, LOOPBACK, port)  # type: ignore[misc]
            await until(lambda: len(engine.request_ids()) == CLIENTS)
            server.engine.begins.set()
            await until(lambda: engine.stats().running == RUNNING)
            running = [int(request.request_id.partition("/")[0]) for request in engine._scheduler.running]
            await until(lambda: all(clients[number].received for number in running if clients[number].streams))
            assert not server.engine.taken
            for client in clients:
                client.transport.abort()
            await asyncio.gather(*server.replica.calls)
            await until(lambda: not engine._pipeline.busy)  # its last steps wait for this loop, too
        return server

    with Engine.from_pretrained(tiny_checkpoint, SETTINGS, vocab_limit=text.vocab_len) as engine:
        server = uvloop.run(scenario(engine))
        stats = engine.stats()
    assert stats.finished == {"stop": 0, "length": 0, "cancelled": CLIENTS, "error": 0}
    assert stats.free_blocks == stats.total_blocks
    assert len(server.left_at) == CLIENTS
    late = {name: (left, server.engine.taken[name]) for name, left in server.left_at.items()}
    assert all(taken <= left + 2 for left, taken in late.values()), late


def test_clients_that_only_finish_sending_get_their_output(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two read a stream, and one a whole response: they end their side of the connection after the request."""
    text = TextTokenizer.from_folder(tiny_checkpoint)

    async def scenario(engine: Engine) -> list[bytes]:
        server = Server(engine, text, monkeypatch)
        async with server.listening() as port:
            clients = [Client(number, max_tokens=5) for number in range(3)]
            for client in clients:
                await asyncio.get_running_loop().create_connection(lambda client=client: client, LOOPBACK, port)  # type: ignore[misc]
                client.transport.write_eof()
            await until(lambda: len(engine.request_ids()) == len(clients))
            server.engine.begins.set()
            await until(lambda: all(client.closed for client in clients))
        return [client.data for client in clients]

    with Engine.from_pretrained(tiny_checkpoint, SETTINGS, vocab_limit=text.vocab_len) as engine:
        whole, *streams = uvloop.run(scenario(engine))
        assert engine.stats().finished["length"] == 3
    assert b"HTTP/1.1 200 OK" in whole
    assert b'"completion_tokens":5' in whole
    for stream in streams:
        assert stream.count(b'"finish_reason":"length"') == 1
        assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
