"""How many ids are drafted, from the rates of acceptance and the durations of steps."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.speculative.acceptance import AcceptanceRates
from mpt_serve.engine.speculative.draft_policy import draft_lengths
from mpt_serve.engine.step_costs import StepCosts


def costs_of(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts(list(seconds))
    for size, duration in seconds.items():
        for _ in range(3):
            costs.measured(size, duration)
    return costs


def falling(count: int) -> st.SearchStrategy[list[float]]:
    rates = st.lists(st.floats(0.05, 0.95), max_size=count)
    return rates.map(lambda rates: list(itertools.accumulate(rates, lambda a, b: a * b)))


# Acceptance


def test_each_length_of_match_has_its_own_rate() -> None:
    rates = AcceptanceRates()
    for _ in range(40):
        rates.observe(2, False)
        rates.observe(20, True)
    assert rates.rate(2) < 0.02
    assert rates.rate(20) > 0.98
    assert rates.rate(4) == AcceptanceRates().rate(4)


def test_longer_matches_are_trusted_more_before_anything_is_known() -> None:
    known = [AcceptanceRates().rate(length) for length in range(1, 40)]
    assert known == sorted(known)
    assert 0 < known[0] < known[-1] < 1


def test_rates_follow_a_text_that_changes() -> None:
    rates = AcceptanceRates()
    for _ in range(200):
        rates.observe(3, False)
    for _ in range(20):
        rates.observe(3, True)
    assert rates.rate(3) > 0.8


def test_survivals_multiply_as_the_match_grows() -> None:
    rates = AcceptanceRates()
    assert rates.survivals([3, 4]) == [rates.rate(3), rates.rate(3) * rates.rate(4)]


# Costs


def test_a_step_costs_what_its_padded_size_costs() -> None:
    costs = costs_of({1: 0.1, 8: 0.13})
    assert costs.cost(5) == costs.cost(8) == 0.13
    assert [costs.padded(n) for n in (1, 2, 8, 9)] == [1, 8, 8, 9]


def test_costs_grow_with_the_tokens_before_anything_is_measured() -> None:
    costs = StepCosts([1, 4, 16])
    assert costs.cost(1) < costs.cost(4) < costs.cost(16) < costs.cost(17)


def test_a_size_without_measurements_is_estimated_from_its_neighbour() -> None:
    prior, costs = StepCosts([1, 4, 64]), StepCosts([1, 4, 64])
    costs.measured(1, 1.0)
    costs.measured(4, 3.0)
    assert costs.cost(64) == pytest.approx(3.0 * prior.cost(64) / prior.cost(4))


def test_one_slow_step_does_not_count() -> None:
    costs = costs_of({1: 0.1, 8: 0.13})
    costs.measured(8, 9.0)
    assert costs.cost(8) == 0.13
    costs = costs_of({1: 0.1})
    costs.sizes = (1, 8)
    costs.measured(8, 9.0)  # the first one of its size compiled something
    assert costs.cost(8) < 0.2


def test_old_measurements_expire() -> None:
    costs = costs_of({1: 0.1, 8: 9.0})
    for _ in range(600):
        costs.measured(1, 0.1)
    assert costs.cost(8) < 0.2


@pytest.mark.parametrize("sizes", [[], [0, 1]])
def test_sizes_without_sense_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="step sizes"):
        StepCosts(sizes)


# The rule


def test_no_drafts_where_none_pays() -> None:
    costs = costs_of({1: 1.0, 4: 1.3, 8: 1.6})
    assert draft_lengths([[0.2, 0.04, 0.01]], 1, costs) == [0]
    assert draft_lengths([[]], 1, costs) == [0]
    assert draft_lengths([], 3, costs) == []


def test_the_size_with_the_most_tokens_per_second_is_filled() -> None:
    survivals = [[0.9, 0.81, 0.73, 0.66, 0.59, 0.53, 0.48]]
    assert draft_lengths(survivals, 1, costs_of({1: 1.0, 4: 1.1, 8: 1.3})) == [7]  # 5.7 / 1.3 against 3.44 / 1.1
    assert draft_lengths(survivals, 1, costs_of({1: 1.0, 4: 1.1, 8: 2.0})) == [3]
    assert draft_lengths(survivals, 1, costs_of({1: 1.0, 4: 4.0, 8: 8.0})) == [0]


def test_a_step_gives_its_space_to_the_likeliest_drafts() -> None:
    costs = costs_of({4: 1.0, 8: 1.2, 64: 9.0})
    assert draft_lengths([[0.9, 0.8, 0.7], [], [0.6, 0.1], [0.2]], 4, costs) == [3, 0, 1, 0]


def test_space_in_a_padded_step_is_free() -> None:
    assert draft_lengths([[0.2, 0.1], []], 3, costs_of({4: 1.0, 8: 5.0})) == [1, 0]


def test_a_full_step_has_no_space() -> None:
    assert draft_lengths([[0.9], [0.9]], 8, costs_of({4: 1.0, 8: 1.0})) == [0, 0]


SIZES = (1, 2, 4, 8, 16)


@given(st.lists(falling(6), max_size=4), st.integers(0, 3), st.lists(st.floats(0.01, 5), min_size=5, max_size=5))
def test_no_choice_of_beginnings_promises_more(survivals: list[list[float]], others: int, steps: list[float]) -> None:
    costs = costs_of(dict(zip(SIZES, itertools.accumulate(steps), strict=True)))
    rows = len(survivals) + others
    if rows == 0:
        return

    def rate(lengths: tuple[int, ...] | list[int]) -> float:
        expected = rows + sum(sum(row[:n]) for row, n in zip(survivals, lengths, strict=True))
        return expected / costs.cost(rows + sum(lengths))

    chosen = draft_lengths(survivals, rows, costs)
    assert all(0 <= n <= len(row) for n, row in zip(chosen, survivals, strict=True))
    choices = itertools.product(*[range(len(row) + 1) for row in survivals])
    best = max(rate(choice) for choice in choices if rows + sum(choice) <= max(SIZES))
    if any(chosen):
        assert rate(chosen) >= best * (1 - 1e-9)
    else:
        assert best <= 1.05 * rate(chosen) * (1 + 1e-9)
