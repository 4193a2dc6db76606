"""The waits between two attempts."""

import pytest

from mpt_serve.batches import backoff
from mpt_serve.batches.backoff import backoff_s


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff.random, "random", lambda: 0.5)


def test_waits_double_up_to_the_longest() -> None:
    assert [backoff_s(times, 3) for times in (1, 2, 3, 4, 5, 10_000)] == [0.5, 1, 2, 3, 3, 3]


def test_the_server_says_how_long_up_to_two_minutes() -> None:
    assert [backoff_s(9, 30, wanted_s=wanted) for wanted in (0, 0.25, 90, 1000)] == [0, 0.25, 90, 120]


def test_a_quarter_is_up_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = iter([0.0, 1.0])
    monkeypatch.setattr(backoff.random, "random", lambda: next(shortest))
    assert [backoff_s(2, 30), backoff_s(2, 30)] == [0.75, 1.25]
