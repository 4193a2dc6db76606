"""/openapi.json and the page that shows it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from jsonschema import Draft202012Validator
from loopback_server import serving
from starlette.routing import Route
from test_errors import GOOD

from mpt_serve.openai.app import create_app
from mpt_serve.openai.openapi import OPERATIONS
from mpt_serve.openai.pages import PLAYGROUND_FILES

OF_THE_INGRESS = {"/stats", "/metrics"}
OF_THE_PAGES = {"/docs/docs.css", "/docs/docs.js", *PLAYGROUND_FILES} - {"/"}


@pytest.fixture(scope="module")
def document(shared_http: httpx.Client) -> Any:
    return shared_http.get("/openapi.json").json()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref" and isinstance(value, str))
        for value in node.values():
            yield from references(value)


def validator(document: Any, schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_is_described(document: Any) -> None:
    served = {
        (method.lower(), route.path.replace(":path", ""))
        for route in create_app(FakeBackend()).routes
        if isinstance(route, Route) and route.path not in OF_THE_PAGES
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == served | {("get", path) for path in OF_THE_INGRESS}


def test_it_is_an_openapi_document(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    assert set(document["info"]) == {"title", "version", "description"}
    assert document["servers"] == [{"url": "/"}]
    names = [described["operationId"] for methods in document["paths"].values() for described in methods.values()]
    assert len(set(names)) == len(names) == len(OPERATIONS)
    schemas = document["components"]["schemas"]
    assert {ref.rpartition("/")[2] for ref in references(document)} <= set(schemas)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", sorted(GOOD))
def test_requests_and_responses_are_as_described(http: httpx.Client, document: Any, path: str) -> None:
    described = document["paths"][path]["post"]
    body = described["requestBody"]["content"]["application/json"]
    requests = validator(document, body["schema"])
    assert requests.is_valid(GOOD[path])
    assert requests.is_valid(body["example"])
    assert http.post(path, json=body["example"]).status_code == 200
    assert not requests.is_valid({**GOOD[path], "model": 5})
    response = http.post(path, json=GOOD[path])
    validator(document, described["responses"]["200"]["content"]["application/json"]["schema"]).validate(
        response.json()
    )
    error = http.post(path, json=5).json()
    validator(document, described["responses"]["default"]["content"]["application/json"]["schema"]).validate(error)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_events_are_as_described(http: httpx.Client, document: Any, path: str) -> None:
    described = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    text = http.post(path, json={**GOOD[path], "stream": True}).text
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.strip().split("\n\n")]
    assert len(events) > 1
    for event in events:
        validator(document, described).validate(event)
        if event["data"] != "[DONE]":
            data = described["properties"]["data"]["contentSchema"]
            validator(document, data).validate(json.loads(event["data"]))


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/mpt-echo", "/models", "/tokenizer_info", "/load", "/health", "/version"]
)
def test_what_is_got_is_as_described(http: httpx.Client, document: Any, path: str) -> None:
    described = document["paths"][path.replace("mpt-echo", "{id}")]["get"]
    schema = described["responses"]["200"]["content"]["application/json"]["schema"]
    validator(document, schema).validate(http.get(path).json())


def test_the_page_needs_no_other_host(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    own = [link for link in linked if not link.startswith("data:")]
    assert sorted(own) == ["docs/docs.css", "docs/docs.js", "openapi.json"]
    for link in own:
        answer = http.get(f"/{link}")
        assert answer.status_code == 200
        assert "://" not in answer.text or link == "openapi.json"
    for path in ("/docs", *(f"/{link}" for link in own[:2])):
        headers = http.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"


def test_below_a_prefix_the_document_names_it() -> None:
    backend = FakeBackend()
    app = create_app(backend, root_path="/llm")
    with serving(backend, app=app) as server, httpx.Client(base_url=server.url) as http:
        for path in ("/openapi.json", "/llm/openapi.json"):
            assert http.get(path).json()["servers"] == [{"url": "/llm"}]
        body = json.dumps({"prompt": "ab"})
        for path in ("/v1/completions", "/llm/v1/completions", "/llm/completions"):
            answer = http.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.json()["choices"][0]["text"] == "ab"
        server.backend.full = True
        assert http.post("/llm/v1/completions", content=body).headers["x-mpt-overloaded"] == "3.00"
        for path in ("/llmv1/completions", "/llmx", "/llm/llm/health"):
            assert http.get(path).status_code == 404
