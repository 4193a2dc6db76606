"""The counters of the Generators and their engines, as Prometheus reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["ENGINE_METRICS", "EngineMetric"]


@dataclass(frozen=True)
class EngineMetric:
    """One field of `Generator.stats` under its public name; label: the name of its keys, if it is a mapping."""

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


ENGINE_METRICS = (
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
        "mpt_serve_compile_seconds_total", "compile_seconds", "Seconds spent on compiling, or loading what was compiled"
    ),
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
    EngineMetric("mpt_serve_weight_bytes", "weight_bytes", "Memory of the model's weights"),
    EngineMetric("mpt_serve_cache_bytes", "cache_bytes", "Memory of the KV cache"),
    EngineMetric("mpt_serve_generator_resident_bytes", "resident_bytes", "Memory of the Generator's process"),
    EngineMetric(
        "mpt_serve_device_bytes", "device_bytes", "Memory in use on the replica's accelerators, 0 where there is none"
    ),
)
