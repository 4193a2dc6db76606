"""The engines' counters, as Prometheus reads them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["METRICS", "EngineMetric", "exposition", "metrics_reference"]


@dataclass(frozen=True)
class EngineMetric:
    """One field of `EngineStats` under its public name; label: what the field's keys are, where it is a mapping."""

    name: str
    kind: Literal["counter", "gauge"]
    field: str
    meaning: str
    label: str | None = None

    def family(self, replicas: Sequence[Mapping[str, Any]]) -> Metric:
        """Return the metric's values, one for each replica, or for each of a replica's keys."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, self.meaning, labels=["replica", *([self.label] if self.label else [])])
        for stats in replicas:
            value = stats[self.field]
            for key, number in value.items() if self.label else [("", value)]:
                family.add_metric([stats["replica"], key] if self.label else [stats["replica"]], number)
        return family


METRICS = (
    EngineMetric("mpt_serve_running_choices", "gauge", "running", "Choices of requests that take part in steps"),
    EngineMetric("mpt_serve_waiting_choices", "gauge", "waiting", "Choices of requests that wait for a place"),
    EngineMetric("mpt_serve_cache_blocks", "gauge", "total_blocks", "Blocks of the key-value cache"),
    EngineMetric(
        "mpt_serve_cache_free_blocks",
        "gauge",
        "free_blocks",
        "Blocks of the key-value cache that no request holds; those kept for later prompts are among them",
    ),
    EngineMetric("mpt_serve_steps_total", "counter", "steps", "Steps that the engine started"),
    EngineMetric("mpt_serve_prompt_tokens_total", "counter", "prompt_tokens", "Tokens of prompts"),
    EngineMetric(
        "mpt_serve_cached_prompt_tokens_total",
        "counter",
        "cached_tokens",
        "Tokens of prompts that were found in the cache, or shared between choices, rather than computed",
    ),
    EngineMetric("mpt_serve_generated_tokens_total", "counter", "generated_tokens", "Tokens of answers"),
    EngineMetric("mpt_serve_draft_tokens_total", "counter", "drafted_tokens", "Tokens that speculation drafted"),
    EngineMetric(
        "mpt_serve_accepted_draft_tokens_total",
        "counter",
        "accepted_tokens",
        "Drafted tokens that the model would have chosen too",
    ),
    EngineMetric(
        "mpt_serve_preemptions_total",
        "counter",
        "preemptions",
        "Choices that gave up their blocks, to be resumed later",
    ),
    EngineMetric(
        "mpt_serve_compilations_total", "counter", "compilations", "Programs compiled while serving; 0 with pre_compile"
    ),
    EngineMetric("mpt_serve_finished_choices_total", "counter", "finished", "Choices that ended", label="reason"),
)


def exposition(replicas: Sequence[Mapping[str, Any]]) -> bytes:
    """Return what `GET /metrics` answers: Prometheus' text format.

    replicas: what `Generator.stats` returned, one mapping for each replica.
    """

    class Replicas(Collector):
        def collect(self) -> Iterator[Metric]:
            return (metric.family(replicas) for metric in METRICS)

    registry = CollectorRegistry()
    registry.register(Replicas())
    return generate_latest(registry)


def metrics_reference() -> str:
    """Return the whole of docs/metrics.md."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in ('replica', metric.label) if label)}"
        f" | {metric.meaning} |"
        for metric in METRICS
    ]
    return _REFERENCE + "\n".join(rows) + "\n"


_REFERENCE = """\
# Metrics

Written by `python -m mpt_serve.deployments.metrics > docs/metrics.md`.

`GET /metrics` answers in Prometheus' text format for all Generator replicas, whichever Ingress replica is asked. A
replica's counters start at 0 with it. What Ray and Ray Serve measure (requests, latencies, queues, nodes) is in Ray's
own metrics. The share of drafted tokens that were right, over five minutes:

    sum(rate(mpt_serve_accepted_draft_tokens_total[5m])) / sum(rate(mpt_serve_draft_tokens_total[5m]))

| metric | kind | labels | meaning |
|---|---|---|---|
"""


if __name__ == "__main__":
    print(metrics_reference(), end="")
