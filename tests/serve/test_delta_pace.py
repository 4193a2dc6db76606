"""When deltas that follow each other closely go on together."""

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.deployments import delta_pace
from mpt_serve.deployments.delta_pace import Choice, Entry, Pace

INTERVAL_S = 0.010


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop whose time passes as the test says; what was delivered, with its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.delivered: list[tuple[float, Choice, list[int]]] = []
        self.errors = 0
        self.pace = Pace(INTERVAL_S, self._deliver, self._fail)

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(at, call))
        return self.timers[-1]

    def wait_until(self, now: float) -> None:
        for timer in [timer for timer in self.timers if timer.at <= now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                self.now = timer.at
                timer.call()
        self.now = now

    def take(self, at: float, token: int, choice: Choice = (0, 0), *, urgent: bool = False) -> None:
        self.wait_until(at)
        self.pace.take([(choice, (*choice, token), urgent)])

    def _deliver(self, choice: Choice, entries: Sequence[Entry]) -> None:
        tokens = [entry[2] for entry in entries]
        if -1 in tokens:
            raise ValueError("no entry")
        self.delivered.append((round(self.now, 4), choice, tokens))

    def _fail(self) -> None:
        self.errors += 1


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    own = Loop()
    monkeypatch.setattr(delta_pace, "asyncio", SimpleNamespace(get_running_loop=lambda: own))
    return own


def steps(loop: Loop, seconds: float, count: int, choice: Choice = (0, 0)) -> list[float]:
    for number in range(count):
        loop.take(number * seconds, number, choice, urgent=number == 0)
    loop.wait_until(count * seconds + 1)
    assert [token for _, _, tokens in loop.delivered for token in tokens] == list(range(count))
    return [at for at, _, _ in loop.delivered]


def test_steps_that_are_short_go_together(loop: Loop) -> None:
    assert steps(loop, 0.004, 9)[:5] == [0.0, 0.008, 0.016, 0.024, 0.032]


def test_many_streams_have_fewer_events_each(loop: Loop) -> None:
    streams = int(3 * INTERVAL_S * delta_pace._EVENTS_PER_S)
    for number in range(100):
        loop.wait_until(number * 0.002)
        loop.pace.take([((stream, 0), (stream, 0, number), number == 0) for stream in range(streams)])
    loop.wait_until(1.0)
    times = [at for at, choice, _ in loop.delivered if choice == (0, 0)]
    gaps = [after - before for before, after in itertools.pairwise(times[1:])]
    assert min(gaps[:-1]) == pytest.approx(3 * INTERVAL_S, abs=0.003)
    assert [token for _, choice, tokens in loop.delivered if choice == (5, 0) for token in tokens] == list(range(100))


@pytest.mark.parametrize("seconds", [0.006, 0.009, 0.010, 0.030])
def test_steps_that_cannot_be_joined_do_not_wait(loop: Loop, seconds: float) -> None:
    assert steps(loop, seconds, 20) == [round(number * seconds, 4) for number in range(20)]


def test_what_waits_for_a_step_that_takes_longer_goes_at_the_end_of_the_interval(loop: Loop) -> None:
    loop.take(0.0, 0, urgent=True)
    loop.take(0.002, 1)
    loop.take(0.5, 2)
    assert loop.delivered == [(0.0, (0, 0), [0]), (0.01, (0, 0), [1]), (0.5, (0, 0), [2])]


def test_what_is_urgent_takes_what_waits_of_its_choice_along(loop: Loop) -> None:
    loop.take(0.0, 0, urgent=True)
    loop.take(0.001, 1)
    loop.take(0.002, 7, (5, 1), urgent=True)
    loop.take(0.003, 2, urgent=True)
    assert loop.delivered == [(0.0, (0, 0), [0]), (0.002, (5, 1), [7]), (0.003, (0, 0), [1, 2])]
    loop.wait_until(1.0)
    assert len(loop.delivered) == 3


def test_an_error_in_what_waited_is_reported(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.take(0.0, 0, urgent=True)
    loop.take(0.001, -1)
    loop.wait_until(1.0)
    assert loop.errors == 1
    assert "could not be read" in caplog.text


Frame = list[tuple[int, bool]]  # a choice's index, and whether it is urgent, of each entry


@given(
    st.lists(
        st.tuples(st.floats(0.0, 0.03), st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=5)), max_size=40
    )
)
def test_nothing_is_lost_or_waits_for_longer_than_the_interval(frames: list[tuple[float, Frame]]) -> None:
    loop = Loop()
    came: dict[int, float] = {}
    expected: dict[int, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_pace, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
        at = 0.0
        for seconds, frame in frames:
            at += seconds
            loop.wait_until(at)
            entries = []
            for index, urgent in frame:
                expected.setdefault(index, []).append(len(came))
                entries.append(((0, index), (0, index, len(came)), urgent))
                came[len(came)] = at
            loop.pace.take(entries)
        loop.wait_until(at + 1)
    tokens: dict[int, list[int]] = {}
    for when, (_, index), some in loop.delivered:
        tokens.setdefault(index, []).extend(some)
        assert all(when - came[token] <= INTERVAL_S + 1e-3 for token in some)
    assert tokens == expected
