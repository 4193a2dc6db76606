"""URLs in requests are text: nothing that a client sends makes the server open one. And pages have no ranges."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from test_errors import GOOD, POSTS


class Canary:
    """A port on loopback that nobody should connect to."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/x.png"

    def was_asked(self) -> bool:
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.socket.close()


def with_urls(path: str, url: str) -> Iterator[dict[str, Any]]:
    """Yield requests to an endpoint with a URL wherever another server might fetch it."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_image", "image_url": url},
        {"type": "input_file", "file_url": url},
        {"type": "image", "source": {"type": "url", "url": url}},
        {"type": "document", "source": {"type": "url", "url": url}},
        {"type": "text", "text": f"![]({url})"},
        {"type": "input_text", "text": url},
    ]
    for part in parts:
        content = [{"role": "user", "content": [part]}]
        yield {**GOOD[path], "messages": content}
        yield {**GOOD[path], "input": content}
    for field in ("prompt", "input", "query", "text_1", "text_2", "documents", "model", "user", "file", "webhook_url"):
        yield {**GOOD[path], field: url}
    yield {**GOOD[path], "tools": [{"type": "mcp", "server_url": url}], "mcp_servers": [{"type": "url", "url": url}]}
    schema = {"$schema": url, "$id": url, "$ref": url}
    yield {**GOOD[path], "guided_json": schema, "response_format": {"type": "json_object", "schema": schema}}


@pytest.mark.parametrize("path", POSTS)
def test_no_url_of_a_request_is_opened(http: httpx.Client, path: str, canary: Canary) -> None:
    for body in with_urls(path, canary.url):
        response = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404), response.text
    assert not canary.was_asked()


@pytest.mark.parametrize("path", ["/", "/docs", "/playground/access.js", "/openapi.json"])
def test_pages_are_sent_whole(http: httpx.Client, path: str) -> None:
    whole = http.get(path)
    for value in ("bytes=0-3", "bytes=0-,0-,0-", "bytes=-1", "x"):
        response = http.get(path, headers={"range": value})
        assert (response.status_code, response.content) == (whole.status_code, whole.content)
        assert "content-range" not in response.headers
