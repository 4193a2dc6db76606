"""Admission control: bounded, exact, with a Retry-After that follows the measured rate."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.deployments.admission import Admission
from mpt_serve.openai.errors import NotReadyError


def test_requests_are_bounded_and_released() -> None:
    admission = Admission(max_requests=2, max_prompt_tokens=100)
    with admission.admit([1]), admission.admit([1]):
        with pytest.raises(NotReadyError) as error, admission.admit([1]):
            pass
        assert (error.value.status, error.value.code) == (503, "overloaded")
        assert 1 <= int(error.value.headers["retry-after"]) <= 120
    assert (admission.requests, admission.prompt_tokens) == (0, 0)
    with admission.admit([1]):
        assert admission.requests == 1


def test_prompt_tokens_are_bounded_but_one_long_prompt_is_admitted() -> None:
    admission = Admission(max_requests=10, max_prompt_tokens=100)
    with admission.admit([1000]), pytest.raises(NotReadyError, match="1000 prompt tokens"), admission.admit([1]):
        pass
    with admission.admit([60]), pytest.raises(NotReadyError), admission.admit([41]):
        pass
    with admission.admit([60]), admission.admit([40]):
        assert admission.prompt_tokens == 100


def test_a_failed_request_is_released() -> None:
    admission = Admission(max_requests=1, max_prompt_tokens=1)
    with pytest.raises(KeyError), admission.admit([1]):
        raise KeyError
    assert admission.requests == 0


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8), st.integers(1, 200))
def test_the_bounds_hold_for_any_arrivals(prompts: list[int], max_requests: int, max_tokens: int) -> None:
    admission = Admission(max_requests, max_tokens)
    with ExitStack() as admitted:
        for tokens in prompts:
            try:
                admitted.enter_context(admission.admit([tokens]))
            except NotReadyError:
                assert admission.requests == max_requests or admission.prompt_tokens + tokens > max_tokens
            assert admission.requests <= max_requests
            assert admission.prompt_tokens <= max_tokens or admission.requests == 1
    assert (admission.requests, admission.prompt_tokens) == (0, 0)


def test_one_request_of_many_prompts_is_admitted_alone_and_as_a_whole() -> None:
    admission = Admission(max_requests=2, max_prompt_tokens=100)
    with admission.admit([50] * 5):
        assert (admission.requests, admission.prompt_tokens) == (5, 250)
        with pytest.raises(NotReadyError, match="5 choices wait or run"), admission.admit([1]):
            pass
    with admission.admit([1]), pytest.raises(NotReadyError), admission.admit([1, 1]):
        pass
    assert (admission.requests, admission.prompt_tokens) == (0, 0)


def test_every_choice_counts_and_shares_the_prompt() -> None:
    admission = Admission(max_requests=7, max_prompt_tokens=100)
    with admission.admit([40, 10], choices=3):
        assert (admission.requests, admission.prompt_tokens) == (6, 50)
        with pytest.raises(NotReadyError, match="6 choices wait or run"), admission.admit([1], choices=2):
            pass
        with admission.admit([50]):
            assert admission.requests == 7
    assert (admission.requests, admission.prompt_tokens) == (0, 0)


def test_an_old_rate_does_not_count() -> None:
    now = 0.0
    admission = Admission(max_requests=1, max_prompt_tokens=100, clock=lambda: now, spread=lambda: 1.0)
    for _ in range(5):
        with admission.admit([1]):
            now += 7.0
    now += 3600
    with admission.admit([1]), pytest.raises(NotReadyError) as error, admission.admit([1]):
        pass
    assert error.value.headers["retry-after"] == "5"


def test_retry_after_follows_the_rate_of_ends() -> None:
    now = 0.0
    admission = Admission(max_requests=1, max_prompt_tokens=100, clock=lambda: now, spread=lambda: 1.0)
    for _ in range(5):
        with admission.admit([1]):
            now += 7.0
    with admission.admit([1]), pytest.raises(NotReadyError) as error, admission.admit([1]):
        pass
    assert error.value.headers["retry-after"] == "7"


def test_a_request_is_counted_as_one_until_it_is_known() -> None:
    admission = Admission(max_requests=3, max_prompt_tokens=100)
    with admission.reserve() as reservation:
        assert (admission.requests, admission.prompt_tokens, admission.full) == (1, 0, False)
        reservation.admit([10, 20], choices=1)
        assert (admission.requests, admission.prompt_tokens) == (2, 30)
        with admission.reserve():
            assert admission.full
            with pytest.raises(NotReadyError, match="3 choices wait or run"), admission.reserve():
                pass
        assert not admission.full
    assert (admission.requests, admission.prompt_tokens) == (0, 0)


def test_requests_that_are_only_read_do_not_keep_a_large_one_out() -> None:
    admission = Admission(max_requests=2, max_prompt_tokens=100)
    with admission.reserve(), admission.reserve() as large:
        large.admit([1] * 5)
        assert admission.requests == 6


def test_another_prompt_of_the_usual_length_is_not_read_in_vain() -> None:
    admission = Admission(max_requests=100, max_prompt_tokens=100)
    with ExitStack() as admitted:
        for _ in range(9):
            admitted.enter_context(admission.admit([11]))
        assert admission.full
        with pytest.raises(NotReadyError, match="99 prompt tokens"), admission.reserve():
            pass


def test_a_request_that_was_refused_or_failed_is_no_end_of_work() -> None:
    now = 0.0
    admission = Admission(max_requests=1, max_prompt_tokens=100, clock=lambda: now, spread=lambda: 1.0)
    for _ in range(20):
        with pytest.raises(KeyError), admission.reserve():
            raise KeyError
        now += 1.0
    assert admission.retry_after_s() == 5.0  # there is no rate


def test_the_refused_return_over_the_time_in_which_the_work_drains() -> None:
    """200 choices that drain by 4 a second: the refused return evenly within the next 50 s."""
    now = 0.0
    admission = Admission(max_requests=201, max_prompt_tokens=10_000, clock=lambda: now)
    with ExitStack() as admitted:
        for _ in range(200):
            admitted.enter_context(admission.admit([1]))
        for _ in range(40):
            with admission.admit([1]):
                now += 0.25
        waits = sorted(admission.retry_after_s() for _ in range(2000))
    assert 5 <= waits[0] < 7
    assert 48 < waits[-1] <= 50
    per_second = [sum(second <= wait < second + 1 for wait in waits) for second in range(5, 50)]
    assert max(per_second) < 3 * 2000 / 45


def test_no_wait_is_longer_than_clients_honour() -> None:
    now = 0.0
    admission = Admission(max_requests=1000, max_prompt_tokens=10_000, clock=lambda: now)
    with ExitStack() as admitted:
        for _ in range(900):
            admitted.enter_context(admission.admit([1]))
        for _ in range(5):
            with admission.admit([1]):
                now += 10.0
        waits = [admission.retry_after_s() for _ in range(100)]
    assert max(waits) <= 120
    assert max(waits) - min(waits) > 50
