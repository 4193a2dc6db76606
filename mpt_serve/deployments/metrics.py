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
    field: str
    meaning: str
    label: str | None = None

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        """What Prometheus calls it: names of counters end with `_total`."""
        return "counter" if self.name.endswith("_total") else "gauge"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels of each value."""
        return ("replica",) if self.label is None else ("replica", self.label)

    def family(self, replicas: Sequence[Mapping[str, Any]]) -> Metric:
        """Return the metric's values, one for each replica, or for each of a replica's keys."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, self.meaning, labels=self.labels)
        for stats in replicas:
            value = stats[self.field]
            if self.label is None:
                family.add_metric([stats["replica"]], value)
            else:
                for key, number in value.items():
                    family.add_metric([stats["replica"], key], number)
        return family


METRICS = (
    EngineMetric("mpt_serve_running_choices", "running", "Choices of requests that take part in steps"),
    EngineMetric("mpt_serve_waiting_choices", "waiting", "Choices of requests that wait for a place"),
    EngineMetric("mpt_serve_cache_blocks", "total_blocks", "Blocks of the key-value cache"),
    EngineMetric(
        "mpt_serve_cache_free_blocks",
        "free_blocks",
        "Blocks of the key-value cache that no request holds; those kept for later prompts are among them",
    ),
    EngineMetric("mpt_serve_steps_total", "steps", "Steps that the engine started"),
    EngineMetric("mpt_serve_prompt_tokens_total", "prompt_tokens", "Tokens of prompts; once for all choices"),
    EngineMetric(
        "mpt_serve_cached_prompt_tokens_total",
        "cached_tokens",
        "Tokens of prompts that were found in the cache rather than computed; of the first choice",
    ),
    EngineMetric("mpt_serve_generated_tokens_total", "generated_tokens", "Tokens of answers"),
    EngineMetric("mpt_serve_draft_tokens_total", "drafted_tokens", "Tokens that speculation drafted"),
    EngineMetric(
        "mpt_serve_accepted_draft_tokens_total",
        "accepted_tokens",
        "Drafted tokens that the model would have chosen too",
    ),
    EngineMetric(
        "mpt_serve_preemptions_total",
        "preemptions",
        "Choices that gave up their blocks, to be resumed later",
    ),
    EngineMetric("mpt_serve_compilations_total", "compilations", "Programs compiled while serving; 0 with pre_compile"),
    EngineMetric(
        "mpt_serve_finished_choices_total",
        "finished",
        "Choices that ended; `cancelled` counts those whose client left, or whose request had come to its stop strings",
        label="reason",
    ),
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
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
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
