"""A server behind HAProxy: what clients see there, and streams while its configuration changes."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server import ServerProcess, free_port, serve_config, wait_idle

from mpt_serve.haproxy import haproxy_environment
from mpt_serve.one_loop import ONE_LOOP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BODY = {"model": "embedded", "prompt": "The whale", "max_tokens": 400, "temperature": 0, "ignore_eos": True}


class Served:
    """A server with HAProxy that can be scaled."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.variables = {**ONE_LOOP, **haproxy_environment({})}
        self.server = ServerProcess.of(self.config(1), folder, variables=self.variables)

    def config(self, ingresses: int) -> dict[str, Any]:
        settings = {"model": "embedded", "engine": {"pre_compile": False}}
        return serve_config(settings, self.port, [{"name": "Ingress", "num_replicas": ingresses}])

    def scale(self, ingresses: int) -> None:
        """Change the number of Ingress replicas, so that HAProxy gets another configuration."""
        assert self.server.deploy((self.config(ingresses), "RUNNING")).startswith("RUNNING")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("haproxy"))
    with served.server:
        served.server.wait_ready()
        yield served


def streamed(url: str) -> str:
    """Return the text of a stream, and make sure that it came to its end."""
    text, done = "", False
    with httpx.stream("POST", f"{url}/v1/completions", json={**BODY, "stream": True}, timeout=300) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            done = line == "data: [DONE]"
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
            if done:
                break
    assert done
    return text


def test_responses_are_the_applications_own(served: Served) -> None:
    url = served.server.url
    whole = httpx.post(f"{url}/v1/completions", json=BODY, timeout=300).json()
    assert streamed(url) == whole["choices"][0]["text"]
    missing = httpx.get(f"{url}/nothing", headers={"x-request-id": "r1"}, timeout=30)
    assert (missing.status_code, missing.headers["x-request-id"]) == (404, "r1")
    assert missing.json()["error"]["type"] == "not_found_error"
    assert httpx.post(f"{url}/v1/completions", json={**BODY, "model": "no"}, timeout=30).status_code == 404
    assert "cannot be reached" not in served.server.output()  # deltas come over links


def test_a_client_that_leaves_ends_its_request(served: Served) -> None:
    url = served.server.url
    body = {**BODY, "max_tokens": 1500, "n": 4, "temperature": 1, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=300) as response:
        next(response.iter_lines())
    assert wait_idle(url)["finished"]["cancelled"] == 4


@pytest.mark.parametrize("changes", [1, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_streams_outlive_changes_of_the_configuration(served: Served, changes: int) -> None:
    url = served.server.url
    expected = streamed(url)
    texts: list[str] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                texts.append(streamed(url))
            except BaseException as error:
                failures.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        for change in range(changes):
            served.scale(1 + (change + 1) % 2)
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert failures == []
    assert set(texts) == {expected}
    (file,) = Path(served.variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.glob("*/haproxy.cfg")
    assert "hard-stop-after 86400s" in file.read_text()
