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
    """One field of `EngineStats` under its public name; label: the name of its keys, if it is a mapping."""

    name: str
    field: str
    meaning: str
    label: str | None = None

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        """Return the metric's type in Prometheus; names of counters end with `_total`."""
        return "counter" if self.name.endswith("_total") else "gauge"

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the labels of each value."""
        return ("replica",) if self.label is None else ("replica", self.label)

    def family(self, replicas: Sequence[Mapping[str, Any]]) -> Metric:
        """Return the metric's values, one for each replica, or for each key of each replica."""
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
    EngineMetric("mpt_serve_running_choices", "running", "Choices of requests that are generating"),
    EngineMetric("mpt_serve_waiting_choices", "waiting", "Choices of requests that wait for a slot"),
    EngineMetric("mpt_serve_cache_blocks", "total_blocks", "Blocks of the KV cache"),
    EngineMetric(
        "mpt_serve_cache_free_blocks",
        "free_blocks",
        "Blocks of the KV cache that no request holds, also those kept for later prompts",
    ),
    EngineMetric("mpt_serve_steps_total", "steps", "Steps that the engine started"),
    EngineMetric(
        "mpt_serve_prompt_tokens_total", "prompt_tokens", "Prompt tokens; counted once for all choices of a prompt"
    ),
    EngineMetric(
        "mpt_serve_cached_prompt_tokens_total",
        "cached_tokens",
        "Prompt tokens found in the prefix cache rather than computed; of the first choice",
    ),
    EngineMetric("mpt_serve_generated_tokens_total", "generated_tokens", "Generated tokens"),
    EngineMetric("mpt_serve_draft_tokens_total", "drafted_tokens", "Draft tokens of speculative decoding"),
    EngineMetric(
        "mpt_serve_accepted_draft_tokens_total",
        "accepted_tokens",
        "Draft tokens that the model accepted",
    ),
    EngineMetric(
        "mpt_serve_preemptions_total",
        "preemptions",
        "Preemptions: choices that gave up their cache blocks and are computed again later",
    ),
    EngineMetric("mpt_serve_compilations_total", "compilations", "Programs compiled while serving; 0 with pre_compile"),
    EngineMetric(
        "mpt_serve_choices_without_numbers_total",
        "without_numbers",
        "Choices that ended with an error because the model's logits held no finite number",
    ),
    EngineMetric(
        "mpt_serve_finished_choices_total",
        "finished",
        "Choices that ended; `cancelled`: the client disconnected, or the request had reached its stop strings",
        label="reason",
    ),
)


def exposition(replicas: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the body of `GET /metrics`, in Prometheus' text format.

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

`GET /metrics` responds in Prometheus' text format for all Generator replicas, whichever Ingress replica serves it. The
counters of a replica start at 0 with it. What Ray and Ray Serve measure (requests, latencies, queues, nodes) is in
Ray's own metrics. The acceptance rate of draft tokens, over five minutes:

    sum(rate(mpt_serve_accepted_draft_tokens_total[5m])) / sum(rate(mpt_serve_draft_tokens_total[5m]))

| metric | kind | labels | meaning |
|---|---|---|---|
"""


if __name__ == "__main__":
    print(metrics_reference(), end="")
