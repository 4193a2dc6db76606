"""Who may call what: every route that the application has, every spelling of a path, every way to present a key."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from loopback_server import Server, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from test_errors import GOOD, check_error

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.api_key import new_key
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app
from mpt_serve.openai.authentication import ADMIN_PATHS, PUBLIC_PATHS
from mpt_serve.openai.pages import PLAYGROUND_FILES

API, APIS = new_key("user")
ADMIN, ADMINS = new_key("operator", ["admin"])
OTHER, OTHERS = new_key("other", ["api", "admin"])
PUBLIC = PUBLIC_PATHS | PLAYGROUND_FILES.keys()
PROMPT = {"prompt": "abc", "max_tokens": 3}


async def secret(request: Request) -> PlainTextResponse:
    return PlainTextResponse("secret")


class Guarded:
    """An application that requires keys, with the routes that the Ingress adds and one that no table names."""

    def __init__(self, folder: Path, limits: Limits | None = None, **settings: Any) -> None:
        limits = limits or Limits()
        file = folder / "keys"
        file.write_text("\n".join(key.line() for key in (APIS, ADMINS, OTHERS)))
        access = AccessControl.of(AccessSettings(key_file=str(file), **settings), limits)
        assert access is not None
        self.clients = access.clients
        self.backend = FakeBackend()
        self.app: Starlette = create_app(self.backend, limits, access)
        for path in ("/stats", "/metrics", "/added/later"):
            self.app.router.routes.append(Route(path, secret))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def server(guarded: Guarded) -> Iterator[Server]:
    with serving(guarded.backend, app=guarded.app) as server:
        yield server


@pytest.fixture(scope="module")
def anyone(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def calls(app: Starlette) -> list[tuple[str, str]]:
    """Return the method and the path of everything that the application routes."""
    return [
        (method, route.path.replace("{id:path}", "mpt-echo"))
        for route in app.router.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
    ]


def test_every_route_needs_a_key_unless_it_is_listed_as_public(guarded: Guarded, anyone: httpx.Client) -> None:
    found = calls(guarded.app)
    assert {path for _, path in found} >= PUBLIC | ADMIN_PATHS | set(GOOD)
    for method, path in found:
        response = anyone.request(method, path)
        if path in PUBLIC:
            assert response.status_code == 200
        elif method == "HEAD":
            assert response.status_code == 401
        else:
            check_error(response, 401, "invalid_api_key")


def test_every_route_needs_the_right_scope(guarded: Guarded, anyone: httpx.Client) -> None:
    for method, path in calls(guarded.app):
        body = GOOD.get(path) or GOOD.get(f"/v1{path}")
        statuses = [
            anyone.request(method, path, json=body, headers=bearer(key)).status_code for key in (API, ADMIN, OTHER)
        ]
        if path in PUBLIC:
            assert statuses == [200] * 3
        elif "/files" in path or "/batches" in path:  # there is no folder for them
            assert statuses == [404, 403, 404], path
        else:
            assert statuses == ([403, 200, 200] if path in ADMIN_PATHS else [200, 403, 200]), path


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/nothing", "/v1/", "/docs", "/openapi.json"])
def test_paths_without_a_route_need_a_key_too(anyone: httpx.Client, path: str) -> None:
    check_error(anyone.get(path), 401, "invalid_api_key")
    assert anyone.get(path, headers=bearer(API)).status_code != 401


SPELLINGS = [
    "//v1/models",
    "/v1//models",
    "/%76%31/models",
    "/v1/%6dodels",
    "/v1%2fmodels",
    "/health/../v1/models",
    "/health/%2e%2e/v1/models",
    "/health%2f..%2fv1%2fmodels",
    "/health/",
    "//health",
    "/HEALTH",
    "/health;/v1/models",
    "/health%00",
    "/ready%3f/v1/models",
    "/./v1/models",
    "/v1/models?/health",
    "/v1/models#/health",
    "/%73tats",
    "/stats/",
    "//stats",
    "/./stats",
    "/health/../stats",
    "/met%72ics",
]


def raw(server: Server, target: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Send a request target as it is; clients would change some."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection._validate_path = lambda path: None  # type: ignore[attr-defined]
    try:
        connection.putrequest(method, target, skip_host="host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("target", SPELLINGS)
def test_no_spelling_of_a_path_slips_by(server: Server, target: str) -> None:
    status, body = raw(server, target)
    assert status == 401, body
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    status, body = raw(server, target, authorization=f"Bearer {API}")
    assert b"secret" not in body  # the administrators'
    assert status in (200, 403, 404)


def test_another_spelling_of_a_public_path_is_that_path(server: Server) -> None:
    assert raw(server, "/%68ealth") == (200, b'{"status":"ok"}')


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "TRACE", "PATCH"])
def test_no_method_slips_by(server: Server, method: str) -> None:
    for headers in ({}, {"x_http_method_override": "GET"}, {"host": "127.0.0.1/health"}):
        assert raw(server, "/stats", method, **headers)[0] == 401
        assert raw(server, "/v1/models", method, **headers)[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": API},
        {"Authorization": f"Basic {API}"},
        {"Authorization": f"Bearer {API} {API}"},
        {"Authorization": f"Bearer {API}x"},
        {"Authorization": f"Bearer {API[:-1]}"},
        {"Authorization": f"Bearer {API.upper()}"},
        {"Authorization": f"Bearer {API[:20]}{'0' * 64}"},
        {"Authorization": f"Bearer {new_key('x')[0]}"},
        {"Authorization": "Bearer " + "x" * 20_000},
        {"X-Api-Key": ""},
        {"X-Api-Key": "wrong"},
        {"X-Api-Key": OTHER, "Authorization": f"Bearer {API}"},
        {"X-Api-Key": API, "Authorization": "Basic dXNlcjpwYXNz"},
    ],
)
def test_wrong_keys_are_one_and_the_same_401(anyone: httpx.Client, headers: dict[str, str]) -> None:
    response = anyone.get("/v1/models", headers=headers)
    error = check_error(response, 401, "invalid_api_key")
    assert error == {
        "message": "The API key is not valid. Send a key of this server in the header 'Authorization: Bearer KEY'.",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_without_a_key_the_challenge_says_how(anyone: httpx.Client) -> None:
    response = anyone.get("/v1/models")
    assert response.headers["www-authenticate"] == "Bearer"
    assert check_error(response, 401)["message"].startswith("This server requires an API key.")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {API}"},
        {"authorization": f"bearer  {API}"},
        {"X-Api-Key": API},
        {"X-Api-Key": API, "Authorization": f"Bearer {API}"},
    ],
)
def test_the_ways_to_present_a_key(anyone: httpx.Client, headers: dict[str, str]) -> None:
    assert anyone.get("/v1/models", headers=headers).status_code == 200


def test_two_keys_are_refused(server: Server) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.putrequest("GET", "/v1/models")
    for key in (API, OTHER):
        connection.putheader("Authorization", f"Bearer {key}")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_the_official_client(guarded: Guarded, server: Server) -> None:
    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)

    guarded.backend.clients.clear()
    with client(API) as own:
        assert own.completions.create(model="mpt-echo", **PROMPT).choices[0].text == "abc"
        stream = own.chat.completions.create(model="mpt-echo", messages=GOOD_CHAT, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "[user]a[assistant]"
    assert guarded.backend.clients == ["user", "user"]
    with client("sk-anything") as own, pytest.raises(openai.AuthenticationError) as wrong:
        own.models.list()
    assert wrong.value.code == "invalid_api_key"
    with client(ADMIN) as own, pytest.raises(openai.PermissionDeniedError) as narrow:
        own.models.list()
    assert narrow.value.code == "insufficient_scope"
    assert narrow.value.response.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="api"'


GOOD_CHAT: Any = [{"role": "user", "content": "a"}]


def test_a_body_is_not_read_before_the_key_is_known(guarded: Guarded) -> None:
    async def never() -> Any:
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}
    asyncio.run(guarded.app(scope, never, send))
    assert sent[0]["status"] == 401


def test_websockets_are_refused_and_the_lifespan_is_not(guarded: Guarded) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    asyncio.run(guarded.app({"type": "websocket", "path": "/health", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    asyncio.run(guarded.app({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent[1:]] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_prefix_of_the_application_changes_nothing(guarded: Guarded) -> None:
    async def status(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded.app, root_path="/mpt")) as client:
            return (await client.get(f"http://server{path}")).status_code

    paths = {"/mpt/health": 200, "/health": 200, "/mpt/v1/models": 401, "/mpt/mpt/health": 401, "/mpthealth": 401}
    assert {path: asyncio.run(status(path)) for path in paths} == paths


class TestLimits:
    def test_requests_per_minute(self, tmp_path: Path) -> None:
        guarded = Guarded(tmp_path, requests_per_minute=2)
        with serving(guarded.backend, app=guarded.app) as server:
            for _ in range(2):
                assert httpx.get(f"{server.url}/v1/models", headers=bearer(API)).status_code == 200
            response = httpx.get(f"{server.url}/v1/models", headers=bearer(API))
            error = check_error(response, 429, "rate_limit_exceeded")
            assert error["type"] == "rate_limit_error"
            assert error["message"] == "This API key may send 2 requests per minute; retry later."
            assert 25 <= int(response.headers["retry-after"]) <= 30
            for _ in range(5):  # others are served, and an operator is not limited
                assert httpx.get(f"{server.url}/stats", headers=bearer(ADMIN)).status_code == 200
            assert httpx.get(f"{server.url}/v1/models", headers=bearer(OTHER)).status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_tokens_per_minute(self, tmp_path: Path, stream: bool) -> None:
        guarded = Guarded(tmp_path, tokens_per_minute=6)
        with serving(guarded.backend, app=guarded.app) as server:
            url, body = f"{server.url}/v1/completions", {**PROMPT, "stream": stream}
            assert httpx.post(url, json=body, headers=bearer(API)).status_code == 200  # 3 and 3
            response = httpx.post(url, json=body, headers=bearer(API))
            check_error(response, 429, "rate_limit_exceeded")
            assert response.json()["error"]["message"] == "This API key may use 6 tokens per minute; retry later."
            assert httpx.post(f"{server.url}/tokenize", json=PROMPT, headers=bearer(API)).status_code == 200
            assert httpx.post(url, json=body, headers=bearer(OTHER)).status_code == 200

    def test_tokens_of_a_client_that_disconnects_count(self, tmp_path: Path) -> None:
        guarded = Guarded(tmp_path, tokens_per_minute=100)
        guarded.backend.hang_after = 5
        client = guarded.clients.owner(APIS)
        with serving(guarded.backend, app=guarded.app) as server:
            body = {"prompt": "abcdefgh", "max_tokens": 50, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=bearer(API)) as response:
                lines = response.iter_lines()
                assert sum(next(lines).startswith("data:") for _ in range(9)) == 5
                assert (client.choices, client.prompt_tokens) == (1, 8)
            server.wait_until(lambda: client.choices == 0)
        assert client._tokens._level < 100 - 8 - 4

    def test_choices_at_the_same_time(self, tmp_path: Path) -> None:
        guarded = Guarded(tmp_path, Limits(max_waiting_requests=4))  # three of them for one client
        guarded.backend.hang_after = 1
        with serving(guarded.backend, app=guarded.app) as server:
            url, body = f"{server.url}/v1/completions", {**PROMPT, "n": 2}
            streamed = {**body, "stream": True}
            with httpx.stream("POST", url, json=streamed, headers=bearer(API)) as response:
                assert response.status_code == 200
                refused = httpx.post(url, json=body, headers=bearer(API))
                error = check_error(refused, 429, "rate_limit_exceeded")
                assert error["message"] == "2 choices of this API key wait or run; it may have 3."
                with httpx.stream("POST", url, json=streamed, headers=bearer(OTHER)) as other:
                    assert other.status_code == 200
            client = guarded.clients.owner(APIS)
            server.wait_until(lambda: client.choices == 0)
            guarded.backend.hang_after = None
            assert httpx.post(url, json=body, headers=bearer(API)).status_code == 200
