"""Traces of requests through the deployments, with the SDK's exporter into memory."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from test_generator import FakeEngine, generator_over
from test_serve_backend import FakeGenerator, backend, collect, continuing

from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments import tracing as tracing_module
from mpt_serve.deployments.tokenizer import Tokenizer
from mpt_serve.deployments.traced_app import TracedApp, current_carrier
from mpt_serve.deployments.tracing import Tracing, traced, tracing_from_environment, watched_generation
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError
from mpt_serve.openai.route_names import RouteNames

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PATHS = ("/known", "/known/{id}", "/prefix/known", "/unknown", "/health")
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Recorder:
    """Tracing into memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def get(recorder: Recorder, path: str, endpoint: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    """Send a request to a traced application whose known paths are /known and those below it."""
    app = Starlette(routes=[Route(any_path, endpoint) for any_path in PATHS])

    async def on_a_copy(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope}, receive, send)

    served = TracedApp(on_a_copy, recorder.tracing, RouteNames(["/known", "/known/{id}"]), "/prefix")

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get(path, headers=headers)

    return asyncio.run(scenario())


async def respond(request: Request) -> Response:
    request.state.request_id = "id-1"
    return PlainTextResponse(current_carrier()["carrier"]["traceparent"])


def test_a_request_continues_its_clients_trace(recorder: Recorder) -> None:
    carried = get(recorder, "/known", respond, TRACEPARENT).text
    span = recorder.spans["GET /known"]
    assert (trace_of(span), parent_of(span), span.kind) == (TRACE, PARENT, SpanKind.SERVER)
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/known",
        "http.response.status_code": 200,
        "mpt_serve.request_id": "id-1",
    }
    assert span.context is not None
    assert carried == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert current_carrier() == {}


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-nonsense"}, {"traceparent": "\xff"}], ids=str)
def test_a_request_without_a_trace_begins_one(recorder: Recorder, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    get(recorder, "/known", respond, raw)  # type: ignore[arg-type]
    assert recorder.spans["GET /known"].parent is None


def test_ids_and_prefixes_are_no_part_of_a_spans_name(recorder: Recorder) -> None:
    get(recorder, "/known/of-a-client", respond)
    get(recorder, "/prefix/known", respond)
    assert list(recorder.spans) == ["GET /known/{id}", "GET /known"]


def test_polls_are_not_traced_and_paths_of_clients_not_shown(recorder: Recorder) -> None:
    async def respond_untraced(request: Request) -> Response:
        return PlainTextResponse(str(current_carrier()))

    assert get(recorder, "/health", respond_untraced, TRACEPARENT).text == "{}"
    get(recorder, "/unknown", respond)
    assert list(recorder.spans) == ["GET (other path)"]


def test_errors_of_the_server_are_errors_of_the_span(recorder: Recorder) -> None:
    async def fail(request: Request) -> Response:
        return PlainTextResponse("at capacity", 503)

    get(recorder, "/known", fail)
    span = recorder.spans["GET /known"]
    assert span.status.status_code == StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "503"


def test_a_generators_part_counts_tokens(recorder: Recorder) -> None:
    engine = FakeEngine()
    generator = generator_over(engine)
    generator._tracing = recorder.tracing

    async def scenario() -> None:
        stream: Any = generator.generate([1, 2, 3], SamplingParams(), "a", carrier=TRACEPARENT)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        engine.listeners["a"](Delta((5,), None, None, 3, 2))
        await first
        engine.listeners["a"](Delta((6, 7), "length", None, 3, 2))
        assert [delta.token_ids async for delta in stream] == [(6, 7)]

    asyncio.run(scenario())
    span = recorder.spans["generate"]
    assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)
    assert span.attributes == {
        "mpt_serve.request_id": "a",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "mpt_serve.cached_tokens": 2,
    }
    assert [event.name for event in span.events] == ["first token"]


def test_a_cancelled_part_is_no_error_and_a_refused_one_is(recorder: Recorder) -> None:
    engine = FakeEngine()
    generator = generator_over(engine)
    generator._tracing = recorder.tracing

    async def cancel() -> None:
        stream: Any = generator.generate([1], SamplingParams(), "a", carrier=TRACEPARENT)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        engine.listeners["a"](Delta((5,), None, None, 1))
        await first
        await stream.aclose()

    async def refuse() -> None:
        await anext(generator.generate([], SamplingParams(), "b", carrier=TRACEPARENT))  # type: ignore[call-overload]

    asyncio.run(cancel())
    cancelled = recorder.spans["generate"]
    assert cancelled.status.status_code == StatusCode.UNSET
    assert cancelled.attributes is not None
    assert cancelled.attributes["mpt_serve.cancelled"] is True
    with pytest.raises(RequestError):
        asyncio.run(refuse())
    refused = recorder.spans["generate"]
    assert (refused.status.status_code, refused.status.description) == (StatusCode.ERROR, None)
    assert refused.attributes is not None
    assert refused.attributes["error.type"] == "RequestError"


@pytest.mark.usefixtures("kept_loggers")
def test_a_tokenizers_part(recorder: Recorder, tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer(Settings(model=str(tiny_checkpoint), chat_template="dolly"))
    assert tokenizer._tracing is None  # nothing is configured
    tokenizer._tracing = recorder.tracing
    asyncio.run(tokenizer.encode("abc", carrier=TRACEPARENT))
    asyncio.run(tokenizer.encode_chat([{"role": "user", "content": "ab"}], carrier=TRACEPARENT))
    tokenizer._chat.close()
    spans = recorder.spans
    assert {name: dict(span.attributes or {}) for name, span in spans.items()} == {
        "tokenize": {"mpt_serve.characters": 3},
        "tokenize chat": {"mpt_serve.messages": 1},
    }
    assert {parent_of(span) for span in spans.values()} == {PARENT}


def test_the_ingress_passes_its_span_on(recorder: Recorder) -> None:
    generator = FakeGenerator(continuing())
    encoded: list[dict[str, Any]] = []

    async def encode(text: str, *how: bool, **carrier: Any) -> list[int]:
        encoded.append(carrier)
        return [1]

    remote = SimpleNamespace(remote=encode)
    served = backend(generator, tokenizer=SimpleNamespace(encode=remote, encode_chat=remote))

    async def endpoint(request: Request) -> Response:
        await served.encode("a", True)
        await served.encode_chat([], True, False)
        await asyncio.create_task(collect(served, SamplingParams(max_tokens=2)))
        return PlainTextResponse("")

    get(recorder, "/known", endpoint, TRACEPARENT)
    span = recorder.spans["GET /known"]
    assert span.context is not None
    carrier = {"traceparent": f"00-{TRACE}-{span.context.span_id:016x}-01"}
    assert encoded == [{"carrier": carrier}] * 2
    assert generator.carriers == [carrier]


def test_requests_that_are_not_traced_have_no_spans(recorder: Recorder) -> None:
    for tracing, carrier in ((None, TRACEPARENT), (recorder.tracing, None)):
        with traced(tracing, "tokenize", carrier) as span:
            assert span is None
        with watched_generation(tracing, carrier, "a", 3) as watch:
            assert watch(print) is print
    assert recorder.spans == {}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "mpt"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"},
    ],
    ids=str,
)
def test_nothing_is_traced_unless_an_exporter_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.delattr(tracing_module, "entry_points")  # nothing may be looked for
    assert tracing_from_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, "otlp_proto_http"),
    ],
    ids=str,
)
def test_the_exporter_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], exporter: str
) -> None:
    memory = InMemorySpanExporter()
    asked: list[tuple[str, str]] = []

    def entry_points(group: str, name: str) -> list[Any]:
        asked.append((group, name))
        return [SimpleNamespace(load=lambda: lambda: memory)]

    monkeypatch.setattr(tracing_module, "entry_points", entry_points)
    tracing = tracing_from_environment(environment)
    assert tracing is not None
    assert asked == [("opentelemetry_traces_exporter", exporter)]
    with tracing.span("work", {}, SpanKind.INTERNAL):
        pass
    tracing.provider.shutdown()  # exports what is left
    (span,) = memory.get_finished_spans()
    assert span.resource.attributes["service.name"] == "mpt-serve"


def test_a_missing_exporter_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing_module, "entry_points", lambda group, name: [])
    with caplog.at_level("WARNING", "ray.serve"):
        assert tracing_from_environment({"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "mpt-serve[otel]" in caplog.text


def test_the_service_keeps_the_name_that_the_environment_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "writer")
    tracing = tracing_from_environment({"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "writer"})
    assert tracing is not None
    assert tracing.provider.resource.attributes["service.name"] == "writer"
    tracing.provider.shutdown()
