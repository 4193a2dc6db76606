"""Whatever other threads do, and whenever: the engine's own thread alone changes requests, and each gets its end."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from engine_helpers import Listener, assert_all_free, generate, held_after, wait_until
from test_engine import GREEDY, lazy_engine, prompt_of

from mpt_serve.engine import Engine, EngineClosedError, RequestError
from mpt_serve.engine.inbox import AddRequest
from mpt_serve.llm import LLM, Piece

__all__ = ["lazy_engine"]  # a fixture

LONG = replace(GREEDY, max_tokens=48)


@pytest.fixture
def held(engine: Engine) -> Iterator[Callable[[], None]]:
    """Holds the engine's thread in a listener until it is called."""
    entered, release = threading.Event(), threading.Event()

    def hold(delta: object) -> None:
        entered.set()
        assert release.wait(60)

    engine.submit(prompt_of(3), replace(GREEDY, max_tokens=1), hold)
    assert entered.wait(60)
    yield release.set
    release.set()
    assert_all_free(engine)


class Session:
    """Reads a stream, and is part of a reference cycle, as is any object that holds its bound methods."""

    def __init__(self, stream: Iterator[Piece]) -> None:
        self._stream = stream
        self.read = self._read

    def _read(self) -> Piece:
        return next(self._stream)


def test_an_abandoned_stream_may_be_collected_in_the_middle_of_a_step(
    lazy_engine,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = lazy_engine()
    sessions = [Session(LLM(engine).generate([prompt_of(3, seed)], LONG, stream=True)) for seed in range(2)]
    pool, threads, abandoned = engine._scheduler.pool, [], threading.Event()
    allocate = pool.allocate

    def collecting(count: int) -> list[int]:
        if len(threads) < 2 and len(engine._scheduler.running) == 2:
            abandoned.wait(0.2)  # each of two dozen times, so that the streams do not end before
            if abandoned.is_set():
                threads.append(threading.current_thread())
                gc.collect()
        return allocate(count)  # type: ignore[no-any-return]

    monkeypatch.setattr(pool, "allocate", collecting)
    with ThreadPoolExecutor(2) as executor:
        with held_after(engine, turns=0):
            reads = [executor.submit(session.read) for session in sessions]
            wait_until(lambda: engine.stats().waiting == 2)
        for read in reads:
            read.result()
    gc.disable()  # the next collection is the engine's
    try:
        sessions.clear()
        abandoned.set()
        wait_until(lambda: bool(threads))
    finally:
        gc.enable()
    assert_all_free(engine)
    assert set(threads) == {engine._thread}
    assert engine.stats().error is None
    assert engine.stats().finished["cancelled"] == 2
    assert len(generate(engine, [prompt_of(5)], GREEDY)[0].token_ids) == 12


def test_a_batch_can_be_interrupted_at_every_line_of_a_submission(
    lazy_engine,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = lazy_engine()
    submit = engine.submit

    def interrupt_at(line: int, seen: list[int]) -> Callable[..., Any]:
        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if not frame.f_globals.get("__name__", "").startswith("mpt_serve."):
                return None  # a collection may happen in any line, and what then runs cannot be interrupted
            if event == "line":
                seen.append(frame.f_lineno)
                if len(seen) == line:
                    raise KeyboardInterrupt
            return trace

        def submit_traced(*args: Any, **options: Any) -> str:
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                return submit(*args, **options)  # type: ignore[no-any-return]
            finally:
                sys.settrace(before)

        return submit_traced

    line = 0
    while True:
        line += 1
        seen: list[int] = []
        monkeypatch.setattr(engine, "submit", interrupt_at(line, seen))
        try:
            generate(engine, [prompt_of(3)], replace(LONG, n=2))
        except KeyboardInterrupt:
            assert_all_free(engine)
            assert not engine._requests._choices
            assert not engine._requests._claimed
        if len(seen) < line:
            break
    assert line > 20
    assert engine.stats().error is None
    assert_all_free(engine)


def test_what_is_submitted_waits_until_the_engine_takes_it(engine: Engine, held: Callable[[], None]) -> None:
    before = engine.stats()
    listener = Listener()
    engine.submit(prompt_of(3), replace(GREEDY, n=3), listener, "three")
    engine.submit(prompt_of(3), GREEDY, listener, "one")
    assert engine.stats() == replace(before, waiting=before.waiting + 4)
    engine.cancel("three", 1)
    engine.cancel("nobody")
    assert engine.stats() == replace(before, waiting=before.waiting + 4)
    held()
    wait_until(lambda: sum(delta.finish_reason is not None for delta in listener.deltas) == 4)
    assert_all_free(engine)


def test_a_name_is_free_as_soon_as_its_request_is_cancelled(engine: Engine, held: Callable[[], None]) -> None:
    first, second = Listener(), Listener()
    engine.submit(prompt_of(3), GREEDY, first, "again")
    engine.cancel("again")
    engine.cancel("again")
    engine.submit(prompt_of(3), GREEDY, second, "again")
    with pytest.raises(RequestError, match="'again' is running already"):
        engine.submit(prompt_of(3), GREEDY, Listener(), "again")
    held()
    assert first.last().finish_reason == "cancelled"
    assert first.token_ids == []
    assert second.last().finish_reason == "length"
    assert engine.submit(prompt_of(3), GREEDY, Listener(), "again") == "again"


def test_a_choice_may_be_ended_as_one_that_stopped(engine: Engine) -> None:
    before, listener = engine.stats().finished, Listener()
    listener = Listener(lambda delta: engine.cancel("stops", 0, "stop"))
    engine.submit(prompt_of(3), LONG, listener, "stops")
    last = listener.last()
    assert (last.finish_reason, last.stop_reason, last.token_ids) == ("stop", None, ())
    assert engine.stats().finished == before | {"stop": before["stop"] + 1}


def test_a_name_that_two_get_at_once_is_cancelled_for_both(engine: Engine, held: Callable[[], None]) -> None:
    listeners = [Listener() for _ in range(3)]
    for listener in listeners[:2]:
        engine.submit(prompt_of(3), LONG, listener, "same")
        engine._requests._claimed.pop("same")  # as a late cancellation of an older one may do
    engine.cancel("same")
    engine.submit(prompt_of(3), GREEDY, listeners[2], "same")
    held()
    assert [listener.last().finish_reason for listener in listeners] == ["cancelled", "cancelled", "length"]
    assert_all_free(engine)
    assert not engine._requests._claimed


@pytest.mark.parametrize("fails", [False, True])
def test_a_submission_that_comes_with_the_end_gets_its_end(
    lazy_engine,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    engine = lazy_engine()
    put, listener = engine._inbox.put, Listener()

    def end_before(item: AddRequest) -> None:
        if fails:
            monkeypatch.setattr(engine._pipeline, "turn", lambda: 1 / 0)
            engine._inbox.wake()
            engine._thread.join()
        engine.close()
        put(item)

    monkeypatch.setattr(engine._inbox, "put", end_before)
    engine.submit(prompt_of(3), GREEDY, listener)
    assert [delta.finish_reason for delta in listener.deltas] == ["error" if fails else "cancelled"]
    assert (listener.deltas[0].message is not None) == fails
    assert_all_free(engine)
    with pytest.raises(EngineClosedError):
        engine.submit(prompt_of(3), GREEDY, Listener())
