"""The body of GET /metrics, and docs/metrics.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mpt_serve.deployments.engine_metrics import ENGINE_METRICS
from mpt_serve.deployments.ingress_metrics import INGRESS_METRICS, buckets, summed

__all__ = ["ALIASES", "Alias", "exposition", "metrics_reference"]

Stats = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Alias:
    """What vLLM names so: one value for the whole server, as gateways and autoscalers read it.

    value: of what the Generators and the Ingresses report; for histograms a field of the Ingresses' snapshots.
    label: the name of its keys, if it is a mapping.
    """

    name: str
    of: str  # in the reference
    value: Callable[[Stats, Stats], float | Mapping[str, float]] | str
    label: str | None = None

    @property
    def kind(self) -> str:
        """Return the metric's type in Prometheus."""
        if isinstance(self.value, str):
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"

    def family(self, generators: Stats, ingresses: Stats, model: str) -> Metric:
        """Return the metric's one value."""
        meaning = f"{self.of}, over all replicas"
        if isinstance(self.value, str):
            histogram = HistogramMetricFamily(self.name, meaning, labels=["model_name"])
            counts = summed(self.value, ingresses)
            histogram.add_metric([model], buckets(self.value, counts), counts[1])
            return histogram
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, meaning, labels=["model_name", *([] if self.label is None else [self.label])])
        value = self.value(generators, ingresses)
        if isinstance(value, Mapping):
            for key, number in value.items():
                family.add_metric([model, key], number)
        else:
            family.add_metric([model], value)
        return family


def _sum_of(field: str) -> Callable[[Stats, Stats], float]:
    return lambda generators, _: float(sum(stats[field] for stats in generators))


def _waiting(generators: Stats, ingresses: Stats) -> float:
    return float(sum(stats["waiting"] for stats in (*generators, *ingresses)))


def _cache_usage(generators: Stats, _: Stats) -> float:
    total = sum(stats["total_blocks"] for stats in generators)
    return 1 - float(sum(stats["free_blocks"] for stats in generators)) / total if total else 0.0


def _successes(generators: Stats, _: Stats) -> Mapping[str, float]:
    """Return the choices that ended without an error, by vLLM's names of the reasons."""
    names = {"stop": "stop", "length": "length", "cancelled": "abort"}
    return {
        name: float(sum(stats["finished"].get(reason, 0) for stats in generators)) for reason, name in names.items()
    }


ALIASES = (
    Alias("vllm:num_requests_running", "`mpt_serve_running_choices`", _sum_of("running")),
    Alias("vllm:num_requests_waiting", "`mpt_serve_waiting_choices` and `mpt_serve_dispatch_waiting`", _waiting),
    Alias("vllm:kv_cache_usage_perc", "the part of the KV cache's blocks that are held, from 0 to 1", _cache_usage),
    Alias("vllm:prefix_cache_queries_total", "`mpt_serve_prompt_tokens_total`", _sum_of("prompt_tokens")),
    Alias("vllm:prefix_cache_hits_total", "`mpt_serve_cached_prompt_tokens_total`", _sum_of("cached_tokens")),
    Alias(
        "vllm:request_success_total",
        "`mpt_serve_finished_choices_total`, with `finished_reason`: `stop`, `length` or `abort`",
        _successes,
        label="finished_reason",
    ),
    Alias("vllm:num_preemptions_total", "`mpt_serve_preemptions_total`", _sum_of("preemptions")),
    Alias("vllm:prompt_tokens_total", "`mpt_serve_prompt_tokens_total`", _sum_of("prompt_tokens")),
    Alias("vllm:generation_tokens_total", "`mpt_serve_generated_tokens_total`", _sum_of("generated_tokens")),
    Alias("vllm:spec_decode_num_draft_tokens_total", "`mpt_serve_draft_tokens_total`", _sum_of("drafted_tokens")),
    Alias(
        "vllm:spec_decode_num_accepted_tokens_total",
        "`mpt_serve_accepted_draft_tokens_total`",
        _sum_of("accepted_tokens"),
    ),
    Alias("vllm:time_to_first_token_seconds", "`mpt_serve_time_to_first_token_seconds`", "time_to_first_token"),
    Alias("vllm:inter_token_latency_seconds", "`mpt_serve_inter_token_latency_seconds`", "inter_token"),
    Alias("vllm:request_queue_time_seconds", "`mpt_serve_queue_time_seconds`", "queue_time"),
    Alias("vllm:e2e_request_latency_seconds", "`mpt_serve_request_duration_seconds`", "request_time"),
    Alias("vllm:request_prompt_tokens", "`mpt_serve_request_prompt_tokens`", "prompt_tokens"),
    Alias("vllm:request_generation_tokens", "`mpt_serve_choice_output_tokens`", "output_tokens"),
)


def exposition(generators: Stats, ingresses: Stats, model: str) -> bytes:
    """Return the body of `GET /metrics`, in Prometheus' text format.

    generators: what `Generator.stats` returned, ingresses: what `Ingress.counters` returned, one mapping for each
    replica. model: its name.
    """

    class Replicas(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from (metric.family(ingresses) for metric in INGRESS_METRICS)
            yield from (metric.family(generators) for metric in ENGINE_METRICS)
            yield from (alias.family(generators, ingresses, model) for alias in ALIASES)

    registry = CollectorRegistry()
    registry.register(Replicas())
    return generate_latest(registry)


def metrics_reference() -> str:
    """Return the whole of docs/metrics.md."""
    own = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in (*INGRESS_METRICS, *ENGINE_METRICS)
    ]
    aliases = [f"| `{alias.name}` | {alias.kind} | {alias.of} |" for alias in ALIASES]
    return _REFERENCE + "\n".join(own) + _ALIASES + "\n".join(aliases) + "\n"


_REFERENCE = """\
# Metrics

Written by `python -m mpt_serve.deployments.metrics > docs/metrics.md`.

`GET /metrics` responds in Prometheus' text format for all replicas, whichever Ingress replica serves it. The counters
of a replica start at 0 with it. With API keys, Prometheus needs one with the scope `admin`:

    scrape_configs:
      - job_name: mpt_serve
        authorization: { credentials_file: /etc/prometheus/mpt-serve-key }
        static_configs: [{ targets: ["server:8000"] }]

What Ray and Ray Serve measure (nodes, queues of theirs) is in Ray's own metrics. `cluster/grafana/mpt_serve.json` is a
dashboard: import it in Grafana. The 95th percentile of the time to the first token, over five minutes:

    histogram_quantile(0.95, sum by (le) (rate(mpt_serve_time_to_first_token_seconds_bucket[5m])))

| metric | kind | labels | meaning |
|---|---|---|---|
"""

_ALIASES = """

## vLLM's names

Gateways and autoscalers that know vLLM find these: one value for the whole server, with the label `model_name`.

| metric | kind | as |
|---|---|---|
"""


if __name__ == "__main__":
    print(metrics_reference(), end="")
