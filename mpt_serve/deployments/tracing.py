"""OpenTelemetry traces of requests through the deployments, where the environment configures an exporter.

The Ingress begins a span for each request, under the client's `traceparent` if it has sent one; the Tokenizer and the
Generators add theirs under it. Without that configuration nothing of OpenTelemetry is imported.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from mpt_serve.engine.request import Delta

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind

__all__ = ["Carrier", "Tracing", "traced", "tracing_from_environment", "watched_generation"]

logger = logging.getLogger("ray.serve")

Carrier = Mapping[str, str]  # the W3C headers of a span, between processes

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTERS = "opentelemetry_traces_exporter"  # entry points of OpenTelemetry's exporters


class Tracing:
    """Makes the spans of one process. provider: exports them."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.provider = provider
        self._tracer = provider.get_tracer("mpt_serve")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, carrier: Carrier, kind: "SpanKind", **attributes: str | int) -> "Iterator[Span]":
        """Record a span while the context is entered.

        An exception that leaves it is the span's error, unless it stands for a request that is cancelled.
        carrier: the span above it, where it is another process' or the client's.
        """
        context: Context = self._propagator.extract(carrier)
        # Not as the current span: a generator's context may be left on another one than it was entered on.
        span = self._tracer.start_span(name, context, kind, attributes)
        try:
            yield span
        except Exception as error:  # its text may quote what a client has sent
            self.fail(span, type(error).__name__)
            raise
        except BaseException:
            span.set_attribute("mpt_serve.cancelled", True)
            raise
        finally:
            span.end()

    @staticmethod
    def fail(span: "Span", kind: str) -> None:
        """Note an error."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR))

    def carrier_of(self, span: "Span") -> Carrier:
        """Return what another process continues a span with."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier


@contextmanager
def traced(
    tracing: Tracing | None, name: str, carrier: Carrier | None, **attributes: str | int
) -> "Iterator[Span | None]":
    """Record a part of a request of another process while the context is entered; None if that is not traced."""
    if tracing is None or carrier is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    with tracing.span(name, carrier, SpanKind.SERVER, **attributes) as span:
        yield span


@contextmanager
def watched_generation(
    tracing: Tracing | None, carrier: Carrier | None, request_id: str, prompt_tokens: int
) -> Iterator[Callable[[Callable[[Delta], None]], Callable[[Delta], None]]]:
    """Record what a Generator does for a request, if it is traced, while the context is entered.

    Yields what makes a listener of the engine one that counts tokens as well.
    """
    tokens = cached = 0
    about: dict[str, str | int] = {"mpt_serve.request_id": request_id, "gen_ai.usage.input_tokens": prompt_tokens}
    with traced(tracing, "generate", carrier, **about) as span:
        if span is None:
            yield lambda listener: listener
            return

        def watch(listener: Callable[[Delta], None]) -> Callable[[Delta], None]:
            def hear(delta: Delta) -> None:
                nonlocal tokens, cached
                if not tokens and delta.token_ids:
                    span.add_event("first token")
                tokens += len(delta.token_ids)
                cached = max(cached, delta.num_cached_tokens)
                listener(delta)

            return hear

        try:
            yield watch
        finally:
            span.set_attributes({"gen_ai.usage.output_tokens": tokens, "mpt_serve.cached_tokens": cached})


def tracing_from_environment(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return what the `OTEL_*` variables configure; None where they name no exporter, or it cannot be had."""
    name = environment.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(environment.get, _ENDPOINTS)) else "none")
    if name == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if name == "otlp":
        protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = entry_points(group=_EXPORTERS, name=name)
    if not found:
        logger.warning("No traces: there is no exporter %r here. Install mpt-serve[otel] on every node.", name)
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = next(iter(found)).load()
    named = "OTEL_SERVICE_NAME" in environment or "service.name" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "mpt-serve"}))
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    return Tracing(provider)
