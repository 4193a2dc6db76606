"""What Prometheus reads."""

from dataclasses import fields
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mpt_serve.deployments.metrics import METRICS, exposition, metrics_reference
from mpt_serve.engine.stats import EngineStats

ROOT = Path(__file__).parents[2]
COUNTS = {field.name for field in fields(EngineStats)} - {"max_model_len", "error", "notes"}


def replica(name: str, first: int) -> dict[str, object]:
    finished = {"stop": first + 1, "error": first + 2}
    return {"replica": name, **dict.fromkeys(COUNTS, first), "finished": finished}


def test_every_count_of_every_replica_is_reported() -> None:
    text = exposition([replica("a", 10), replica("b", 20)]).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {metric.field for metric in METRICS} == COUNTS
    assert {family.name.removesuffix("_total") for family in METRICS} == set(families)
    samples = {
        (s.name, s.labels["replica"], s.labels.get("reason")): s.value
        for family in families.values()
        for s in family.samples
    }
    assert samples["mpt_serve_steps_total", "b", None] == 20
    assert samples["mpt_serve_cache_free_blocks", "a", None] == 10
    assert samples["mpt_serve_finished_choices_total", "a", "error"] == 12
    assert len(samples) == 2 * (len(METRICS) - 1) + 2 * 2


def test_without_replicas_there_are_no_values() -> None:
    families = list(text_string_to_metric_families(exposition([]).decode()))
    assert len(families) == len(METRICS)
    assert not any(family.samples for family in families)


def test_the_reference_page_is_current() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metrics_reference(), "run: python -m mpt_serve.deployments.metrics > docs/metrics.md"
