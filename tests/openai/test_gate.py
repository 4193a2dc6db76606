"""What is refused before any work, and what never waits behind it."""

import asyncio
import json
import sys
from types import FrameType
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from loopback_server import Server, serving
from starlette.types import Message, Scope
from test_errors import check_error

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app

GENERATING = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"]


def scope(path: str, method: str = "POST", **headers: str) -> Scope:
    named = {"content-type": "application/json", **headers}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": encoded}


async def never() -> Message:
    raise AssertionError("a refused request's body is not read")


async def forever() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


class Sent:
    """What the application sends."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def code(self) -> str:
        return str(json.loads(self.messages[1]["body"])["error"]["code"])


@pytest.mark.parametrize("path", GENERATING)
def test_a_full_server_refuses_without_reading_the_body(path: str) -> None:
    sent = Sent()
    asyncio.run(create_app(FakeBackend(full=True))(scope(path), never, sent))
    assert (sent.status, sent.code) == (503, "overloaded")
    headers = dict(sent.messages[0]["headers"])
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"3", b"3000")
    assert int(headers[b"content-length"]) == len(sent.messages[1]["body"])


def test_a_refusal_keeps_the_contract_of_errors(server: Server, http: httpx.Client) -> None:
    server.backend.full = True
    for path in GENERATING:
        check_error(http.post(path, json={"prompt": "a"}), 503, "overloaded")


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/version"])
def test_other_routes_do_not_depend_on_the_capacity(path: str, server: Server, http: httpx.Client) -> None:
    server.backend.full = True
    assert http.get(path).status_code == 200
    assert http.post("/tokenize", json={"prompt": "a"}).status_code == 200
    assert http.get("/v1/completions").status_code == 405


def test_a_refusal_is_a_few_function_calls() -> None:
    app = create_app(FakeBackend(full=True))
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async def refuse() -> None:
        request, sent = scope("/v1/completions", **{"content-length": "4000000"}), Sent()
        await app({**request}, never, sent)  # builds the application
        sys.setprofile(count)
        await app(request, never, sent)
        sys.setprofile(None)

    asyncio.run(refuse())
    assert 0 < calls < 100


def test_a_request_is_counted_from_its_body_to_its_end(server: Server, http: httpx.Client) -> None:
    for body in ({"prompt": "ab"}, {"prompt": "ab", "stream": True}, {"prompt": ""}, {"n": 0}):
        http.post("/v1/completions", json=body)
    assert server.backend.reserved == 0
    assert server.backend.admitted == [(1, 1)] * 2


def test_it_is_counted_while_its_prompt_is_encoded() -> None:
    class Encoding(FakeBackend):
        async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
            assert self.reserved == 1
            return await super().encode(text, add_special_tokens, parse_special_tokens)

    backend = Encoding()
    with serving(backend) as server:
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200
    assert backend.reserved == 0


class TestTexts:
    """How much text is tokenized for one request."""

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/tokenize", {"prompt": "a" * 101}),
            ("/tokenize", {"messages": [{"role": "user", "content": "a" * 101}]}),
            ("/v1/completions", {"prompt": "a" * 101, "truncate_prompt_tokens": 5}),
            ("/v1/completions", {"prompt": ["a" * 60, "a" * 60], "truncate_prompt_tokens": 5}),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "a" * 60}] * 2, "truncate_prompt_tokens": 5},
            ),
        ],
    )
    def test_longer_ones_are_refused_unseen_by_the_tokenizer(self, path: str, body: Any) -> None:
        class Untouched(FakeBackend):
            async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
                raise AssertionError("this text is too long")

        with serving(Untouched(), Limits(max_text_chars=100)) as server:
            error = check_error(httpx.post(server.url + path, json=body), 400, "invalid_value")
        assert "at most 100" in error["message"]

    def test_as_long_as_allowed(self) -> None:
        with serving(limits=Limits(max_text_chars=100)) as server:
            assert httpx.post(f"{server.url}/tokenize", json={"prompt": "a" * 100}).json()["count"] == 100
            body = {"prompt": "a" * 99 + "b", "truncate_prompt_tokens": 3, "max_tokens": 3}
            assert httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"][0]["text"] == "aab"

    def test_ids_to_detokenize(self) -> None:
        with serving(limits=Limits(max_detokenize_tokens=3)) as server:
            error = check_error(httpx.post(f"{server.url}/detokenize", json={"tokens": [64] * 4}), 400)
            assert error["param"] == "tokens"
            assert httpx.post(f"{server.url}/detokenize", json={"tokens": [64] * 3}).status_code == 200

    def test_requests_are_bounded_apart_from_those_that_generate(self) -> None:
        async def scenario() -> None:
            app = create_app(FakeBackend(), Limits(max_waiting_texts=2))
            waiting = [asyncio.create_task(app(scope("/tokenize"), forever, Sent())) for _ in range(2)]
            await asyncio.sleep(0)
            sent = Sent()
            await app(scope("/detokenize"), never, sent)
            assert (sent.status, sent.code) == (503, "overloaded")
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        asyncio.run(scenario())

    def test_a_long_response_leaves_turns_for_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mpt_serve.openai.tokenize.IDS_PER_TURN", 10)
        with serving() as server:
            response = httpx.post(f"{server.url}/tokenize", json={"prompt": "ab" * 55}).json()
        assert (response["count"], len(response["tokens"]), response["tokens"][:2]) == (110, 110, [64, 65])
