"""Pages of other origins: none may call the API unless it is listed."""

import httpx
import pytest
from fake_backend import FakeBackend
from loopback_server import serving

from mpt_serve.openai.app import create_app

PAGE = "https://chat.example.com"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control")}


def test_no_origin_is_allowed_by_default(http: httpx.Client) -> None:
    response = http.options("/v1/chat/completions", headers=PREFLIGHT)
    assert response.status_code == 405
    assert cors_headers(response) == {}
    assert cors_headers(http.get("/v1/models", headers={"Origin": PAGE})) == {}


@pytest.mark.parametrize("origins", [(PAGE, "http://localhost:3000"), ("*",)])
def test_listed_origins(origins: tuple[str, ...]) -> None:
    backend = FakeBackend()
    with serving(backend, app=create_app(backend, cors_origins=origins)) as server, httpx.Client() as http:
        preflight = http.options(f"{server.url}/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] in (PAGE, "*")
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        backend.full = True  # a page must be able to read refusals too
        for method, path, status in (("GET", "/v1/models", 200), ("POST", "/v1/completions", 503)):
            response = http.request(method, f"{server.url}{path}", headers={"Origin": PAGE})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] in (PAGE, "*")
            assert "retry-after-ms" in response.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in response.headers


def test_other_origins_are_refused() -> None:
    backend = FakeBackend()
    with serving(backend, app=create_app(backend, cors_origins=[PAGE])) as server, httpx.Client() as http:
        other = {**PREFLIGHT, "Origin": "https://evil.example.com"}
        preflight = http.options(f"{server.url}/v1/completions", headers=other)
        assert preflight.status_code == 400
        error = preflight.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", None)
        assert "(origin)" in error["message"]
        assert "'access.cors_origins'" in error["message"]
        assert "evil" not in preflight.text
        assert "access-control-allow-origin" not in preflight.headers
        response = http.get(f"{server.url}/v1/models", headers={"Origin": other["Origin"]})
        assert "access-control-allow-origin" not in response.headers
