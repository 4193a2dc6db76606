import logging
import threading
from dataclasses import replace

import pytest

from mpt_serve.engine.stats import EngineStats
from mpt_serve.engine.status_log import StatusLog, status_line

IDLE = EngineStats(
    running=0,
    waiting=0,
    free_blocks=80,
    total_blocks=80,
    max_model_len=512,
    steps=0,
    prompt_tokens=1000,
    cached_tokens=250,
    generated_tokens=400,
    drafted_tokens=100,
    accepted_tokens=10,
    preemptions=0,
    compilations=0,
    compile_seconds=0.0,
    without_numbers=0,
    finished={"stop": 0, "length": 0, "cancelled": 0, "error": 0},
    error=None,
    notes=(),
)


def test_the_line_says_what_the_engine_did_and_holds() -> None:
    now = replace(
        IDLE, running=3, waiting=1, free_blocks=20, prompt_tokens=2000, generated_tokens=900, cached_tokens=500
    )
    assert status_line(IDLE, now, 10) == (
        "tokens/s: 100.0 in, 50.0 out; 3 running, 1 waiting; KV cache 75.0 %; prefix hits 25.0 %"
    )
    drafting = replace(now, drafted_tokens=200, accepted_tokens=60)
    assert str(status_line(IDLE, drafting, 10)).endswith("; drafts accepted 50.0 %")


def test_an_idle_engine_has_no_line() -> None:
    assert status_line(IDLE, IDLE, 10) is None
    assert status_line(IDLE, replace(IDLE, waiting=1), 10) is not None
    assert status_line(IDLE, replace(IDLE, generated_tokens=401), 10) is not None  # ended in between


def test_lines_come_while_there_is_work(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0
    idle_again = threading.Event()

    def stats() -> EngineStats:
        nonlocal calls
        calls += 1
        if calls == 6:
            idle_again.set()
        return replace(IDLE, running=1) if calls in (3, 4) else IDLE

    with caplog.at_level(logging.INFO, logger="mpt_serve.engine.status_log"):
        log = StatusLog(stats, interval_s=0.001)
        assert idle_again.wait(60)
        log.close()
    assert [record.getMessage().split("; ")[1] for record in caplog.records] == ["1 running, 0 waiting"] * 2


def test_memory_is_logged_without_work_too(caplog: pytest.LogCaptureFixture) -> None:
    twice = threading.Event()
    calls: list[None] = []

    def memory() -> str:
        calls.append(None)
        if len(calls) == 2:
            twice.set()
        return "5 MiB resident"

    with caplog.at_level(logging.INFO, logger="mpt_serve.engine.status_log"):
        log = StatusLog(lambda: IDLE, interval_s=0.001, memory=memory)
        assert twice.wait(60)
        log.close()
    assert {record.getMessage() for record in caplog.records} == {"memory: 5 MiB resident"}
