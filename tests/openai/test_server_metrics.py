"""What is counted of requests, as they arrive, stream, end and are refused."""

from collections.abc import Iterator

import httpx
import pytest
from fake_backend import FakeBackend
from loopback_server import Server, serving

from mpt_serve.errors import RequestError
from mpt_serve.openai import server_metrics
from mpt_serve.openai.app import create_app
from mpt_serve.openai.errors import NotReadyError
from mpt_serve.openai.server_metrics import HISTOGRAMS, Histogram, ServerMetrics, TokenTimer

PROMPT = {"prompt": "abc", "max_tokens": 3}


class Measured:
    """A server with its counters."""

    def __init__(self, server: Server, metrics: ServerMetrics, http: httpx.Client) -> None:
        self.server = server
        self.backend = server.backend
        self.metrics = metrics
        self.http = http

    def count(self, name: str) -> int:
        return sum(self.metrics.histograms[name].counts)

    def wait_for_requests(self, number: int) -> None:
        """Wait until the server has counted requests, which is after their last byte."""
        Server.wait_until(lambda: sum(self.metrics.requests.values()) == number)


@pytest.fixture
def measured() -> Iterator[Measured]:
    backend, metrics = FakeBackend(), ServerMetrics()
    with (
        serving(backend, app=create_app(backend, metrics=metrics)) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
    ):
        yield Measured(server, metrics, http)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_with_several_choices(measured: Measured, stream: bool) -> None:
    body = {"prompt": ["abc", "abcde"], "max_tokens": 2, "n": 2, "stream": stream}
    assert measured.http.post("/v1/completions", json=body).status_code == 200
    measured.wait_for_requests(1)
    assert measured.metrics.requests == {("/v1/completions", 200): 1}
    assert measured.count("time_to_first_token") == 2
    assert measured.count("inter_token") == 4 * 1
    assert measured.count("request_time") == 1
    assert (measured.count("prompt_tokens"), measured.metrics.histograms["prompt_tokens"].total) == (2, 8)
    assert (measured.count("output_tokens"), measured.metrics.histograms["output_tokens"].total) == (4, 8)
    assert measured.metrics.refusals == {}


def test_refusals_by_reason(measured: Measured) -> None:
    http, backend = measured.http, measured.backend
    http.post("/v1/completions", json={"prompt": ""})
    http.post("/v1/completions", json={**PROMPT, "model": "other"})
    backend.refusal = NotReadyError("Loading.", code="loading")
    http.post("/v1/completions", json=PROMPT)
    backend.full = True
    http.post("/v1/completions", json=PROMPT)
    measured.wait_for_requests(4)
    refusals = {"invalid_value": 1, "model_not_found": 1, "loading": 1, "overloaded": 1}
    assert measured.metrics.refusals == refusals
    assert measured.metrics.requests == {
        ("/v1/completions", 400): 1,
        ("/v1/completions", 404): 1,
        ("/v1/completions", 503): 2,
    }
    assert measured.count("time_to_first_token") == 0


def test_an_error_inside_a_stream_is_counted(measured: Measured) -> None:
    measured.backend.fail_after = 2
    assert measured.http.post("/v1/completions", json={**PROMPT, "stream": True}).status_code == 200
    measured.wait_for_requests(1)
    assert measured.metrics.refusals == {"internal_error": 1}


def test_other_paths_are_one(measured: Measured) -> None:
    for path in ("/nothing", "/else"):
        measured.http.get(path)
    measured.http.get("/health")
    measured.wait_for_requests(3)
    assert measured.metrics.requests == {("(other path)", 404): 2, ("/health", 200): 1}


def test_paths_with_ids_are_counted_by_their_route(measured: Measured) -> None:
    for path in ("/v1/models/a", "/models/a/b", "/v1/files/a/content", "/v1/files/a", "/v1/batches/a/b"):
        measured.http.get(path)
    measured.wait_for_requests(5)
    assert measured.metrics.requests == {
        ("/v1/models/{id}", 404): 1,
        ("/models/{id}", 404): 1,
        ("/v1/files/{id}/content", 404): 1,
        ("/v1/files/{id}", 404): 1,
        ("(other path)", 404): 1,
    }


def test_grammars_that_cannot_be_compiled(measured: Measured) -> None:
    measured.backend.refusal = RequestError("the grammar is too large")
    body = {**PROMPT, "response_format": {"type": "json_object"}}
    assert measured.http.post("/v1/completions", json=body).json()["error"]["param"] == "response_format"
    measured.http.post("/v1/completions", json=PROMPT)
    assert measured.metrics.structured_output_failures == 1


def test_a_client_that_disconnects_before_the_status(measured: Measured) -> None:
    measured.backend.hang_after = 0
    with measured.server.sent("/v1/completions", PROMPT):
        Server.wait_until(lambda: len(measured.backend.running) == 1)
    measured.wait_for_requests(1)
    assert measured.metrics.requests == {("/v1/completions", 499): 1}


def test_buckets_hold_their_upper_bounds() -> None:
    histogram = Histogram((1, 2, 5))
    for number in (0, 1, 1.5, 2, 5, 6, 100):
        histogram.observe(number)
    assert histogram.counts == [2, 2, 1, 2]
    assert histogram.total == 115.5
    assert all(list(bounds) == sorted(set(bounds)) for bounds in HISTOGRAMS.values())


def test_times_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(server_metrics, "perf_counter", lambda: now)
    metrics = ServerMetrics()
    timer = TokenTimer(metrics, 9.0, 2)
    timer.tokens(0, 1)
    now = 10.5
    timer.tokens(1, 3)  # the other choice's first: no gap, and no first token of the prompt any more
    now = 11.0
    timer.tokens(0, 4)  # a quarter of a second each
    first, gaps = metrics.histograms["time_to_first_token"], metrics.histograms["inter_token"]
    assert (sum(first.counts), first.total) == (1, 1.0)
    assert (sum(gaps.counts), gaps.total) == (4, 1.0)
    assert gaps.counts[HISTOGRAMS["inter_token"].index(0.3)] == 4
    assert metrics.snapshot()["histograms"]["inter_token"] == (gaps.counts, 1.0)
