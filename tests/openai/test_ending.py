"""How requests end before they are complete: the client leaves, time runs out, the engine fails."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from loopback_server import Server, serving

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.request import NO_NUMBERS_MESSAGE, Delta
from mpt_serve.errors import EngineClosedError, RequestError
from mpt_serve.openai.errors import NotReadyError

BODY = {"prompt": "abcdef", "max_tokens": 50}


def lines(response: httpx.Response) -> list[str]:
    return [line for line in response.iter_lines() if line]


class TestDisconnect:
    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
    @pytest.mark.parametrize("hang_after", [0, 2], ids=["before the first token", "midway"])
    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_leaving_ends_the_request_in_the_engine(
        self, server: Server, path: str, hang_after: int, stream: bool
    ) -> None:
        backend = server.backend
        backend.hang_after = hang_after
        body = {"prompt": ["abc", "def"]} if path == "/v1/completions" else {"messages": [BODY]}
        body = body if "prompt" in body else {"messages": [{"role": "user", "content": "Hi"}]}
        with server.sent(path, {**body, "stream": stream}) as connection:
            prompts = len(body.get("prompt", "x"))
            server.wait_until(lambda: len(backend.running) == prompts)
            if stream and hang_after:
                assert b"200 OK" in connection.recv(4096)
        server.wait_until(lambda: not backend.running)
        assert len(backend.cancelled) == prompts

    def test_many_leave_and_the_next_is_served(self, server: Server, http: httpx.Client) -> None:
        server.backend.hang_after = 1

        with ExitStack() as connections:
            for _ in range(20):
                connections.enter_context(server.sent("/v1/completions", BODY))
            server.wait_until(lambda: len(server.backend.running) == 20)
        server.wait_until(lambda: not server.backend.running)
        assert len(server.backend.cancelled) == 20
        server.backend.hang_after = None
        assert http.post("/v1/completions", json=BODY).status_code == 200

    def test_official_client_closes_a_stream(self, server: Server, client: openai.OpenAI) -> None:
        server.backend.hang_after = 2
        stream = client.completions.create(model="mpt-echo", prompt="abc", stream=True)
        next(iter(stream))
        stream.close()
        server.wait_until(lambda: len(server.backend.cancelled) == 1)


class TestDeadline:
    limits = Limits(request_timeout_s=1)  # long enough for two tokens on a busy machine

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_before_the_first_byte_it_is_504(self, stream: bool) -> None:
        backend = FakeBackend(hang_after=0)
        with serving(backend, self.limits) as server:
            response = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": stream})
            assert response.status_code == 504
            assert response.json()["error"] == {
                "message": "The request was not finished within 1 s, this server's limit.",
                "type": "server_error",
                "param": None,
                "code": "timeout",
            }
            assert not backend.running

    def test_later_it_is_an_event(self) -> None:
        backend = FakeBackend(hang_after=2)
        with serving(backend, self.limits) as server:
            response = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": True})
            assert response.status_code == 200
            *_, error, done = lines(response)
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"
            assert done == "data: [DONE]"
            assert len(backend.cancelled) == 1

    def test_a_body_that_never_ends_is_not_waited_for(self) -> None:
        with serving(limits=self.limits) as server:
            port = int(server.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                connection.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
                assert b"504" in connection.recv(4096)


@contextmanager
def events(server: Server) -> Iterator[Iterator[str]]:
    """Yield the lines of a stream that may never end; the client leaves with the block."""
    body = {**BODY, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        yield response.iter_lines()


class TestKeepAlive:
    def test_silent_stream_sends_comments(self) -> None:
        limits = Limits(keep_alive_s=0.05)
        with serving(FakeBackend(hang_after=2), limits) as server, events(server) as lines:
            assert next(lines).startswith("data: {")
            assert ": keep-alive" in lines

    def test_stream_begins_without_a_token_when_that_takes_long(self) -> None:
        limits = Limits(keep_alive_s=0.05, first_token_wait_s=0.05)
        with serving(FakeBackend(hang_after=0), limits) as server, events(server) as lines:
            assert next(lines) == ": keep-alive"


class TestEngineFailure:
    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    @pytest.mark.parametrize(
        ("refusal", "status", "code"),
        [
            (RequestError("the prompt holds id 9"), 400, "invalid_value"),
            (EngineClosedError("closed"), 503, "shutting_down"),
            (NotReadyError("Full.", retry_after_s=3), 503, "overloaded"),
            (RuntimeError('File "/srv/x.py" at 0x1'), 500, "internal_error"),
            (TimeoutError("not ours"), 500, "internal_error"),
        ],
        ids=["request", "closed", "overloaded", "bug", "timeout"],
    )
    def test_refusal_keeps_its_status(
        self, http: httpx.Client, backend: FakeBackend, stream: bool, refusal: Exception, status: int, code: str
    ) -> None:
        backend.refusal = refusal
        response = http.post("/v1/completions", json={**BODY, "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert "/srv" not in response.text

    @pytest.mark.parametrize(
        ("reason", "status", "code"), [("error", 500, "internal_error"), ("cancelled", 503, "shutting_down")]
    )
    def test_failure_before_any_byte_keeps_its_status(
        self, http: httpx.Client, backend: FakeBackend, reason: str, status: int, code: str
    ) -> None:
        backend.fail_after = 0
        backend.failure = Delta((), reason, None, 3, message='File "/srv/x.py"')  # type: ignore[arg-type]
        response = http.post("/v1/completions", json={**BODY, "stream": True})
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert "/srv" not in response.text

    @pytest.mark.parametrize("stream", [False, True])
    def test_broken_numbers_are_named(self, http: httpx.Client, backend: FakeBackend, stream: bool) -> None:
        backend.fail_after = 0
        backend.failure = Delta((), "error", None, 3, message=NO_NUMBERS_MESSAGE)
        response = http.post("/v1/completions", json={**BODY, "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        assert "logits for this request hold no finite number" in response.json()["error"]["message"]

    def test_failure_midway_is_an_event_and_ends_the_other_prompts(
        self, http: httpx.Client, backend: FakeBackend
    ) -> None:
        backend.fail_after = 2
        backend.pause_s = 0.002
        response = http.post("/v1/completions", json={"prompt": ["abcdef", "b"], "stream": True})
        assert response.status_code == 200
        *text, error, done = lines(response)
        assert text
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
        assert done == "data: [DONE]"
        assert not backend.running

    def test_official_client_raises(self, client: openai.OpenAI, backend: FakeBackend) -> None:
        backend.fail_after = 2
        backend.pause_s = 0.002
        with pytest.raises(openai.APIError, match="failed"):
            list(client.completions.create(model="mpt-echo", prompt="abcdef", stream=True))

    def test_stream_without_an_end_is_an_error(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.fail_after = 1
        backend.failure = Delta((), None, None, 3)
        response = http.post("/v1/completions", json=BODY)
        assert response.status_code == 500
        assert "without finishing" in response.json()["error"]["message"]
