"""The number of the kernels' threads follows what steps of each size take."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.thread_choice import ThreadChoice, thread_counts, usable_cores


class Engine:
    """Runs steps whose durations depend on the threads; the pipeline has begun a step when the one before is read."""

    def __init__(self, cores: int) -> None:
        self.threads = cores
        self.used: Counter[int] = Counter()
        self.choice = ThreadChoice(thread_counts(cores), self._limit)
        self._ahead = cores

    def _limit(self, threads: int) -> None:
        self.threads = threads

    def run(self, steps: int, seconds: Callable[[int], float], size: int = 1) -> None:
        self.used.clear()
        for _ in range(steps):
            self.choice.use(size)
            begun, self._ahead = self._ahead, self.threads
            self.used[begun] += 1
            self.choice.measured(size, seconds(begun))


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 7, 8]), (3, [1, 2, 3])])
def test_counts(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def test_this_process_may_use_a_core() -> None:
    assert usable_cores() >= 1


@given(st.integers(1, 64), st.data())
def test_the_fastest_number_is_found_and_trials_are_rare(cores: int, data: st.DataObject) -> None:
    counts = thread_counts(cores)
    best = data.draw(st.sampled_from(counts))

    def seconds(threads: int) -> float:
        return 1 + abs(counts.index(threads) - counts.index(best)) / 4

    engine = Engine(cores)
    engine.run(4000, seconds)
    engine.run(10000, seconds)
    assert engine.used[best] > 9700


def test_it_follows_the_load() -> None:
    engine = Engine(2)
    engine.run(1000, lambda threads: 1 / threads)
    assert engine.used[2] > 950
    engine.run(6000, lambda threads: threads)  # other processes need the cores now
    engine.run(3000, lambda threads: threads)
    assert engine.used[1] > 2900
    engine.run(6000, lambda threads: 1 / threads)
    engine.run(3000, lambda threads: 1 / threads)
    assert engine.used[2] > 2900


def test_each_size_has_its_own_number() -> None:
    engine = Engine(2)
    for _ in range(60):
        engine.run(50, lambda threads: threads, size=1)
        engine.run(50, lambda threads: 1 / threads, size=32)
    engine.run(100, lambda threads: threads, size=1)
    assert engine.used[1] > 80
    engine.run(100, lambda threads: 1 / threads, size=32)
    assert engine.used[2] > 80


def test_what_is_a_little_faster_by_chance_is_not_taken() -> None:
    engine = Engine(2)
    engine.run(5000, lambda threads: 1.0 if threads == 2 else 0.98)
    assert engine.used[2] > 4800


def test_one_core_has_nothing_to_choose() -> None:
    engine = Engine(1)
    engine.run(500, lambda threads: 1.0)
    assert engine.used == {1: 500}


@pytest.mark.parametrize(("cores", "used"), [(1, 1), (2, 1), (8, 7)])
def test_a_core_is_spared_where_there_are_several(cores: int, used: int) -> None:
    engine = Engine(cores)
    engine.choice.use(4, spare_one=True)
    assert engine.threads == used
    engine.choice.use(4)
    assert engine.threads == cores


def test_steps_with_few_threads_have_no_more_where_a_core_is_spared() -> None:
    engine = Engine(4)
    engine.run(6000, lambda threads: threads)
    assert engine.threads == 1
    engine.choice.use(1, spare_one=True)
    assert engine.threads == 1
