"""Records, summaries, prompts and the picture, from streams whose times are given."""

import json
import random
import xml.etree.ElementTree as ET

import pytest

from mpt_serve.load_test import record as record_module
from mpt_serve.load_test.plot import _axis_end, render_plot
from mpt_serve.load_test.prompts import Lengths, WordCounts, words
from mpt_serve.load_test.record import Record
from mpt_serve.load_test.request_source import RequestSource
from mpt_serve.load_test.summary import Objective, percentile, summarize


class Clock:
    """Stands in for `time` in the record's module: it shows what it is set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(record_module, "time", own)
    return own


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return event(choices=[{"index": 0, "text": piece}], usage=None)


def stream(clock: Clock, started: float, times: list[float], usage: int | None = None) -> Record:
    """Return the record of a completion whose tokens came at the given times."""
    record = Record(started)
    for moment in times:
        clock.now = moment
        record.feed(text("x"))
    if usage is not None:
        record.feed(event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": usage}))
    record.feed(b"data: [DONE]\n\n")
    record.finish()
    return record


def test_a_chat_stream_is_timed_from_its_first_text(clock: Clock) -> None:
    record = Record(1.0)
    data = [
        event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
        event(choices=[{"delta": {"content": "a"}}]),
        event(choices=[{"delta": {"content": "b"}}]),
        event(choices=[{"delta": {}, "finish_reason": "stop"}]),
        event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3}),
        b": a comment\nid: 1\ndata: [DONE]\r\n\r\n",
    ]
    for number, part in enumerate(data):
        clock.now = 2.0 + number
        record.feed(part[:9])  # the time is that of the line's end
        clock.now += 0.5
        record.feed(part[9:])
    record.finish()
    assert (record.ttft, list(record.token_times), record.error) == (2.5, [3.5, 4.5], "")
    assert (record.prompt_tokens, record.num_tokens, record.mean_gap, record.ended) == (7, 3, 0.5, 7.5)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "incomplete stream"),
        (b"data: [DONE]\n\n", ""),
        (event(error={"message": "x", "type": "server_error", "code": None}), "error event (server_error)"),
        (event(error={"code": 400}), "error event (400)"),
        (event(error="x"), "error event (unknown)"),
        (b"data: {\n", "unreadable event"),
        (b"data: [1]\n", "unreadable event"),
        (b'data: {"choices": [1]}\n', "unreadable event"),
    ],
)
def test_kinds_of_errors(data: bytes, error: str) -> None:
    record = Record(0.0)
    record.feed(data)
    record.finish()
    assert record.error == error


def test_a_summary(clock: Clock) -> None:
    records = [
        stream(clock, 0.0, [0.1, 0.2, 0.4], usage=3),
        stream(clock, 1.0, [1.3, 1.4], usage=3),  # an event with two tokens
        stream(clock, 2.0, [], usage=0),
        Record(3.0),  # runs
    ]
    failed = stream(clock, 0.5, [0.6])
    failed.error = "timeout"
    clock.now = 2.5
    records[2].finish()
    summary = summarize([*records, failed], Objective(ttft_ms=200, itl_ms=160))
    assert (summary.finished, summary.errors, summary.good) == (3, {"timeout": 1}, 1)
    assert (summary.prompt_tokens, summary.output_tokens, summary.tokens_are_counted) == (30, 6, True)
    assert summary.seconds == 2.5
    content = summary.as_json()
    assert content["ttft_ms"] == {"mean": 200, "p50": 100, "p90": 300, "p95": 300, "p99": 300, "max": 300}
    assert content["itl_ms"]["p50"] == 100
    assert content["tpot_ms"]["max"] == 150
    assert content["output_tokens_per_s"] == 2.4
    assert content["goodput"] == {"slo_ttft_ms": 200, "slo_itl_ms": 160, "requests": 1, "requests_per_s": 0.4}


def test_without_counts_of_the_server_events_are_tokens(clock: Clock) -> None:
    summary = summarize([stream(clock, 0.0, [0.1, 0.2])])
    assert (summary.output_tokens, summary.tokens_are_counted, summary.good) == (2, False, 1)
    assert summarize([]).as_json()["e2e_ms"]["max"] == 0


def test_percentiles_are_values() -> None:
    values = list(range(1, 101))
    assert [percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 99) == 7.0


def test_the_picture_has_a_line_for_each_diagram(clock: Clock) -> None:
    records = [stream(clock, float(start), [start + 0.1, start + 0.2], usage=2) for start in range(3)]
    for shown in (records, []):
        root = ET.fromstring(render_plot(shown, "<a> & b"))
        lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == 4
        assert bool(lines[0].get("points")) == bool(shown)
    assert root.findall("{http://www.w3.org/2000/svg}text")[0].text == "<a> & b"


@pytest.mark.parametrize(("largest", "end"), [(271, 400), (100, 100), (0.9, 1), (2653, 4000), (4.2, 8), (0, 1e-9)])
def test_axes_end_at_round_numbers(largest: float, end: float) -> None:
    assert _axis_end(largest) == pytest.approx(end)


def test_lengths() -> None:
    assert Lengths.parse("128") == Lengths(128, 128)
    assert str(Lengths.parse("64-512")) == "64-512"
    source = random.Random(0)
    assert {Lengths(2, 4).draw(source) for _ in range(100)} == {2, 3, 4}
    for wrong in ("0", "5-4", "x", "", "1-", "-3"):
        with pytest.raises(ValueError, match=r"must be a number of tokens|invalid literal"):
            Lengths.parse(wrong)


def test_words_are_counted_by_a_line() -> None:
    counts = WordCounts.fit((16, 42), (64, 138))
    assert counts == WordCounts(tokens_per_word=2, overhead=10)
    assert [counts.words_for(tokens) for tokens in (138, 12, 1)] == [64, 1, 1]
    assert WordCounts.fit((16, 3), (64, 3)) == WordCounts()
    assert len(words(9, random.Random(1)).split()) == 9


def test_requests_are_the_same_for_the_same_number() -> None:
    lengths = Lengths(5, 50), Lengths(1, 9)
    source = RequestSource("chat", "m", "/v1", "host:1", "key", *lengths, WordCounts(), {"top_k": 1}, seed=3)
    request = source(0)
    assert request == source(0)
    assert request != source(1)
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: host:1\r\n")
    assert b"Authorization: Bearer key" in head
    assert f"Content-Length: {len(body)}".encode() in head
    fields = json.loads(body)
    assert (fields["top_k"], fields["stream"], fields["messages"][0]["role"]) == (1, True, "user")
