"""What Prometheus reads, and the dashboard that reads it from there."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mpt_serve.deployments.engine_metrics import ENGINE_METRICS
from mpt_serve.deployments.ingress_metrics import INGRESS_METRICS
from mpt_serve.deployments.memory import device_bytes, resident_bytes
from mpt_serve.deployments.metrics import ALIASES, exposition, metrics_reference
from mpt_serve.engine.stats import EngineStats
from mpt_serve.openai.batching import Batching
from mpt_serve.openai.server_metrics import HISTOGRAMS, ServerMetrics

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "cluster" / "grafana" / "mpt_serve.json"
MEMORY = {"weight_bytes", "cache_bytes", "resident_bytes", "device_bytes"}
COUNTS = {field.name for field in fields(EngineStats)} - {"max_model_len", "error", "notes"} | MEMORY


def generator(name: str, first: int) -> dict[str, Any]:
    finished = {"stop": first + 1, "error": first + 2}
    return {"replica": name, **dict.fromkeys(COUNTS, first), "finished": finished}


def ingress(name: str) -> dict[str, Any]:
    metrics = ServerMetrics()
    for seconds in (0.02, 0.3, 1000.0):
        metrics.observe("time_to_first_token", seconds)
    metrics.requests["/v1/completions", 200] += 3
    metrics.refusals["overloaded"] += 2
    metrics.moves += 1
    batches = {**Batching.counters(None), "batches_ended": {"completed": 7}}
    return {
        "ingress": name,
        **metrics.snapshot(),
        **batches,
        "waiting": 5,
        "background_waiting": 8,
        "resident_bytes": 6,
    }


def read(generators: list[dict[str, Any]], ingresses: list[dict[str, Any]]) -> dict[str, Metric]:
    text = exposition(generators, ingresses, "mpt").decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(families: dict[str, Metric], **labels: str) -> dict[tuple[str, ...], float]:
    """Return the values by name and the labels that are not given."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name not in labels)): sample.value
        for family in families.values()
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


def test_every_count_of_every_generator_is_reported() -> None:
    families = read([generator("a", 10), generator("b", 20)], [])
    assert {metric.field for metric in ENGINE_METRICS} == COUNTS
    of_b = samples(families, replica="b")
    assert of_b["mpt_serve_steps_total",] == 20
    assert of_b["mpt_serve_finished_choices_total", "error"] == 22
    assert len(of_b) == len(ENGINE_METRICS) + 1
    assert samples(families, replica="a")["mpt_serve_cache_free_blocks",] == 10


def test_every_count_of_every_ingress_is_reported() -> None:
    families = read([], [ingress("x"), ingress("y")])
    assert {m.field for m in INGRESS_METRICS if m.kind == "histogram"} == set(HISTOGRAMS)
    assert {m.field for m in INGRESS_METRICS if m.kind != "histogram"} == set(ingress("x")) - {"ingress", "histograms"}
    of_y = samples(families, ingress="y")
    assert of_y["mpt_serve_http_requests_total", "/v1/completions", "200"] == 3
    assert of_y["mpt_serve_refusals_total", "overloaded"] == 2
    assert of_y["mpt_serve_moves_total",] == 1
    assert of_y["mpt_serve_dispatch_waiting",] == 5
    assert of_y["mpt_serve_dispatch_waiting_background",] == 8
    assert of_y["mpt_serve_batches_ended_total", "completed"] == 7
    assert of_y["mpt_serve_batch_requests_total", "failed"] == 0
    assert of_y["mpt_serve_batch_tokens_total", "generated"] == 0
    name = "mpt_serve_time_to_first_token_seconds"
    assert [of_y[f"{name}_bucket", bound] for bound in ("0.01", "0.02", "0.25", "0.5", "640.0", "+Inf")] == [
        *(0, 1, 1, 2, 2, 3)
    ]
    assert of_y[f"{name}_count",] == 3
    assert of_y[f"{name}_sum",] == pytest.approx(1000.32)


def test_the_names_that_gateways_know_have_one_value_for_the_server() -> None:
    generators = [{**generator("a", 10), "total_blocks": 40}, {**generator("b", 20), "total_blocks": 60}]
    values = samples(read(generators, [ingress("x"), ingress("y")]), model_name="mpt")
    assert values["vllm:num_requests_running",] == 30
    assert values["vllm:num_requests_waiting",] == 30 + 2 * 5
    assert values["vllm:kv_cache_usage_perc",] == pytest.approx(0.7)
    assert values["vllm:prefix_cache_hits_total",] == 30
    assert [values["vllm:request_success_total", reason] for reason in ("stop", "length", "abort")] == [32, 0, 0]
    assert values["vllm:time_to_first_token_seconds_count",] == 6
    assert values["vllm:time_to_first_token_seconds_bucket", "0.02"] == 2


def test_without_replicas_sums_are_zero() -> None:
    families = read([], [])
    assert len(families) == len(INGRESS_METRICS) + len(ENGINE_METRICS) + len(ALIASES)
    values = samples(families)
    assert {name for name, *_ in values if not name.startswith("vllm:")} == set()
    assert set(values.values()) == {0.0}


def test_the_memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resident_bytes() > 2**20
    assert device_bytes() == 0

    def missing(path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert resident_bytes() == 0


def test_the_reference_page_is_current() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metrics_reference(), "run: python -m mpt_serve.deployments.metrics > docs/metrics.md"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    exposed = {name for name, *_ in samples(read([generator("a", 1)], [ingress("x")]))}
    labels = {"le", "replica", "ingress", "reason", "path", "status", "outcome", "kind"}
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) >= 20
    asked = set()
    for query in queries:
        names = set(re.findall(r"\b(?:mpt_serve_|vllm:)\w+", query))
        assert names, query
        assert names <= exposed, query
        for inside in re.findall(r"(?:by|without) ?\(([^)]*)\)|\{(\w+)", query):
            assert set(re.findall(r"\w+", "".join(inside))) <= labels, query
        asked |= names
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert shown >= {metric.name for metric in INGRESS_METRICS}


def test_the_dashboards_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (column, row)
        for position in (panel["gridPos"] for panel in panels)
        for column in range(position["x"], position["x"] + position["w"])
        for row in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
