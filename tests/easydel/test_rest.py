"""EasyDeL's endpoints: their bodies, and the errors behind them."""

import asyncio
import socket
from typing import Any

import httpx
import pytest

from mpt_serve.easydel.completions import ServerRequestError
from mpt_serve.easydel.rest import ChatRequest, InstructRequest, RestThread, rest_app
from mpt_serve.easydel.server_config import JAXServerError


class Echo:
    """Responds with the request, and fails as the server may."""

    def forward_chat(self, data: ChatRequest) -> dict[str, Any]:
        if data.prompt == "too long":
            raise ServerRequestError("the prompt is too long", 400)
        return data.model_dump()

    def forward_instruct(self, data: InstructRequest) -> dict[str, Any]:
        return data.model_dump()

    def status(self) -> dict[str, Any]:
        raise JAXServerError("the server has ended with status 1")


def send(method: str, path: str, **options: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(rest_app(Echo()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(call())


def test_the_bodies() -> None:
    body: dict[str, Any] = {"prompt": "Hi", "history": [["a", "b"]], "temperature": 0.5, "greedy": True}
    assert send("POST", "/chat", json=body).json() == body
    instruct = {"prompt": "Hi", "system": None, "temperature": None, "greedy": False}
    assert send("POST", "/instruct", json={"prompt": "Hi"}).json() == instruct


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": 1}, 400, "prompt: Input should be a valid string"),
        ({"prompt": "Hi", "max_tokens": 1}, 400, "max_tokens: Extra inputs are not permitted"),
        ({"prompt": "Hi", "history": [["a"]]}, 400, r"history.0.1: Field required"),
        ([], 400, "the body: Input should be an object"),
        ({"prompt": "too long"}, 400, "the prompt is too long"),
        ({"prompt": "x" * 2**23}, 413, "the body is larger than 8388608 bytes"),
    ],
)
def test_bodies_that_are_refused(body: Any, status: int, message: str) -> None:
    response = send("POST", "/chat", json=body)
    assert (response.status_code, response.json()["error"]["message"]) == (status, message)


def test_a_server_that_has_ended_is_an_error() -> None:
    response = send("GET", "/status")
    assert (response.status_code, response.json()["error"]["message"]) == (503, "the server has ended with status 1")


def test_the_thread_listens_until_it_is_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JAXServerError, match=f"port {port} cannot be listened on: Address already in use"):
            RestThread(rest_app(Echo()), "127.0.0.1", port)
    thread = RestThread(rest_app(Echo()), "127.0.0.1", port)
    assert httpx.post(f"http://127.0.0.1:{port}/chat", json={"prompt": "Hi"}, timeout=30).status_code == 200
    thread.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"http://127.0.0.1:{port}/chat", json={"prompt": "Hi"}, timeout=30)
