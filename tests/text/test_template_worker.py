"""The template worker's own logic, run here without its limits on memory and time, which would bind the tests."""

import io
import json
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from mpt_serve.text import template_worker


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The limits that the worker sets, recorded and not set."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(template_worker.resource, "setrlimit", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(template_worker.signal, "setitimer", lambda *arguments: calls.append(arguments))
    return calls


def replies(monkeypatch: pytest.MonkeyPatch, source: str, *contexts: dict[str, Any]) -> list[dict[str, str]]:
    setup = {"source": source, "variables": {"name": "Ada"}, "limits": {"memory": 7, "seconds": 3, "chars": 20}}
    lines = "".join(json.dumps(line) + "\n" for line in (setup, *contexts))
    output = io.BytesIO()
    monkeypatch.setattr(template_worker.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines.encode())))
    monkeypatch.setattr(template_worker.sys, "stdout", SimpleNamespace(buffer=output))
    template_worker.main()
    ready, *others = [json.loads(line) for line in output.getvalue().splitlines()]
    assert ready == {}
    return others


def test_each_context_is_rendered_within_the_limits(
    monkeypatch: pytest.MonkeyPatch, limits: list[tuple[Any, ...]]
) -> None:
    found = replies(monkeypatch, "{{ greeting }} {{ name }}", {"greeting": "Hi"}, {"greeting": "Bye", "name": "Bob"})
    assert found == [{"text": "Hi Ada"}, {"text": "Bye Bob"}]
    timer = template_worker.signal.ITIMER_PROF
    assert limits == [(template_worker.resource.RLIMIT_AS, (7, 7)), *[(timer, 3), (timer, 0)] * 2]


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        ("{{ raise_exception('no system message') }}", {"error": "no system message"}),
        ("{{ 'ab' * 11 }}", {"error": "its output is longer than 20 characters"}),
        ("{{ 1 / 0 }}", {"error": "ZeroDivisionError"}),
        ("{{ unknown() }}", {"error": "'unknown' is undefined"}),
        ("{{ '<é>' | tojson }}", {"text": '"<é>"'}),
        ("{{ strftime_now('%Y') }}", {"text": str(datetime.now().year)}),
    ],
)
@pytest.mark.usefixtures("limits")
def test_errors_and_functions_of_templates(monkeypatch: pytest.MonkeyPatch, source: str, reply: dict[str, str]) -> None:
    (found,) = replies(monkeypatch, source, {})
    assert found == reply


@pytest.mark.usefixtures("limits")
def test_a_template_without_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(template_worker, "_render", render)
    assert replies(monkeypatch, "{{ name }}", {}) == [{"error": "it needs too much memory"}]


def test_templates_have_what_they_have_in_transformers(
    monkeypatch: pytest.MonkeyPatch, limits: list[tuple[Any, ...]]
) -> None:
    source = (
        "{% generation %}{{ dict(a=1).a }}{{ dict.fromkeys('b') }}{% endgeneration %}"
        "{% set n = namespace(c=3) %}{% set n.c = n.c + 1 %}{{ n.c }}{{ [1] | tojson }}"
    )
    assert replies(monkeypatch, source, {}) == [{"text": "1{'b': None}4[1]"}]
    assert "unsafe" in replies(monkeypatch, "{% set n = namespace(_c=3) %}", {})[0]["error"]
