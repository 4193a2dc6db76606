"""The counters of the Ingresses, as Prometheus reads them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from mpt_serve.openai.server_metrics import HISTOGRAMS

__all__ = ["INGRESS_METRICS", "IngressMetric", "buckets", "summed"]

Snapshot = Mapping[str, Any]  # `ServerMetrics.snapshot`, with the name of its `ingress`
Counts = tuple[Sequence[int], float]  # of a histogram: its buckets, not cumulative, and the sum


@dataclass(frozen=True)
class IngressMetric:
    """One counter under its public name. field: in the snapshots. keys: labels beside `ingress`."""

    name: str
    field: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    keys: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the labels of each value."""
        return ("ingress", *self.keys)

    def family(self, snapshots: Iterable[Snapshot]) -> Metric:
        """Return the metric's values of all Ingresses."""
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.meaning, labels=self.labels)
            for snapshot in snapshots:
                counts = snapshot["histograms"][self.field]
                histogram.add_metric([snapshot["ingress"]], buckets(self.field, counts), counts[1])
            return histogram
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, self.meaning, labels=self.labels)
        for snapshot in snapshots:
            for keys, number in self._values(snapshot[self.field]):
                family.add_metric([snapshot["ingress"], *keys], number)
        return family

    def _values(self, value: Any) -> Iterator[tuple[list[str], float]]:
        if isinstance(value, Mapping):
            yield from (([key], number) for key, number in value.items())
        elif isinstance(value, list):
            yield from (([str(key) for key in keys], number) for *keys, number in value)
        else:
            yield [], value


def buckets(field: str, counts: Counts) -> list[tuple[str, float]]:
    """Return a histogram's cumulative buckets with their upper bounds."""
    bounds = [*(str(float(bound)) for bound in HISTOGRAMS[field]), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts[0])), strict=True))


def summed(field: str, snapshots: Sequence[Snapshot]) -> Counts:
    """Return a histogram over all Ingresses."""
    own = [snapshot["histograms"][field] for snapshot in snapshots]
    none = [0] * (len(HISTOGRAMS[field]) + 1)
    return [sum(column) for column in zip(none, *(counts for counts, _ in own), strict=True)], sum(t for _, t in own)


INGRESS_METRICS = (
    IngressMetric(
        "mpt_serve_time_to_first_token_seconds",
        "time_to_first_token",
        "histogram",
        "From a request's arrival to the first token of each of its prompts",
    ),
    IngressMetric(
        "mpt_serve_inter_token_latency_seconds",
        "inter_token",
        "histogram",
        "Between two tokens of a choice; tokens that arrive together share the time since those before",
    ),
    IngressMetric(
        "mpt_serve_queue_time_seconds",
        "queue_time",
        "histogram",
        "That a prompt waits in the Ingress until it is sent to a Generator",
    ),
    IngressMetric(
        "mpt_serve_request_duration_seconds",
        "request_time",
        "histogram",
        "From the arrival of a request that generated to its end",
    ),
    IngressMetric("mpt_serve_request_prompt_tokens", "prompt_tokens", "histogram", "Tokens of each prompt"),
    IngressMetric(
        "mpt_serve_choice_output_tokens", "output_tokens", "histogram", "Generated tokens of each choice that ended"
    ),
    IngressMetric(
        "mpt_serve_move_pause_seconds",
        "move_pause",
        "histogram",
        "From the loss of a choice's replica to its next tokens, from another one",
    ),
    IngressMetric("mpt_serve_moves_total", "moves", "counter", "Choices that were moved to another replica"),
    IngressMetric(
        "mpt_serve_http_requests_total",
        "requests",
        "counter",
        "HTTP requests that ended; 499: the client disconnected before the status was sent",
        ("path", "status"),
    ),
    IngressMetric(
        "mpt_serve_refusals_total",
        "refusals",
        "counter",
        "Requests that were refused or ended with an error, by the error's code; without those that Serve's proxy"
        " refuses while the server is at capacity",
        ("reason",),
    ),
    IngressMetric(
        "mpt_serve_structured_output_failures_total",
        "structured_output_failures",
        "counter",
        "Requests that were refused because what their output must match cannot be compiled",
    ),
    IngressMetric("mpt_serve_dispatch_waiting", "waiting", "gauge", "Prompts that wait in the Ingress"),
    IngressMetric(
        "mpt_serve_dispatch_waiting_background",
        "background_waiting",
        "gauge",
        "Prompts of batches that wait in the Ingress, after all others",
    ),
    IngressMetric(
        "mpt_serve_batches_unfinished",
        "batches_unfinished",
        "gauge",
        "Batches in the folder that have not ended, whichever Ingress works on them: every Ingress has the same number",
    ),
    IngressMetric("mpt_serve_batches_running", "batches_running", "gauge", "Batches that the Ingress works on"),
    IngressMetric(
        "mpt_serve_batches_ended_total",
        "batches_ended",
        "counter",
        "Batches that the Ingress brought to their end",
        ("status",),
    ),
    IngressMetric(
        "mpt_serve_batch_requests_running",
        "batch_requests_running",
        "gauge",
        "Requests of batches that wait or are computed",
    ),
    IngressMetric(
        "mpt_serve_batch_requests_total",
        "batch_requests",
        "counter",
        "Requests of batches that have a result, also lines that are no requests, as `failed`",
        ("outcome",),
    ),
    IngressMetric(
        "mpt_serve_batch_tokens_total",
        "batch_tokens",
        "counter",
        "Tokens of requests of batches, `prompt` and `generated`",
        ("kind",),
    ),
    IngressMetric("mpt_serve_ingress_resident_bytes", "resident_bytes", "gauge", "Memory of the Ingress' process"),
)
