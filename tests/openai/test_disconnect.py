"""Clients that leave: their requests end in the backend within two turns of the event loop, however many leave at once.

A turn of the loop is what a step of the engine is to the Ingress at most: it takes what has come of one step or more.
"""

import asyncio
import json
from collections.abc import Set
from typing import Any

import pytest
from fake_backend import FakeBackend

from mpt_serve.engine.request import Delta
from mpt_serve.openai.app import create_app
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.disconnect import ClientDisconnectedError, run_while_connected

CLIENTS = 200


class SteppingBackend(FakeBackend):
    """Each turn of the event loop is a step, which brings every running request a token; counts what comes too late."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.running = 0
        self.ends: list[int] = []  # the step at which each request has ended

    async def run(self) -> None:
        while True:
            self.step += 1
            await asyncio.sleep(0)

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        self.running += 1
        try:
            while True:
                on_delta(Delta((65,), None, None, len(request.ids)))
                await asyncio.sleep(0)
        finally:
            self.ends.append(self.step)


@pytest.mark.parametrize("stream", [True, False])
def test_200_that_leave_at_once_end_within_two_steps(stream: bool) -> None:
    backend = SteppingBackend()
    body = json.dumps({"prompt": "x", "max_tokens": 200, "stream": stream, "ignore_eos": True}).encode()

    async def client(app: Any, left: asyncio.Event) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            assert message.get("status", 200) == 200, message

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await app(scope, receive, send)

    async def scenario() -> int:
        app, left = create_app(backend), asyncio.Event()
        stepping = asyncio.create_task(backend.run())
        clients = [asyncio.create_task(client(app, left)) for _ in range(CLIENTS)]
        while backend.running < CLIENTS:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not backend.ends
        left.set()
        left_at = backend.step
        await asyncio.gather(*clients)
        stepping.cancel()
        return left_at

    left_at = asyncio.run(scenario())
    assert len(backend.ends) == CLIENTS
    assert max(backend.ends) <= left_at + 2


def test_what_has_finished_when_the_client_leaves_is_the_result() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def work() -> str:
        return "result"

    async def too_long() -> None:
        await asyncio.Event().wait()

    async def scenario() -> str:
        called: list[bool] = []
        with pytest.raises(ClientDisconnectedError):
            await run_while_connected(receive, too_long(), lambda: called.append(True))
        assert called == [True]
        return await run_while_connected(receive, work())

    assert asyncio.run(scenario()) == "result"
