"""Scheduler, block pool and pipeline: random histories over a runner without a model, and the rules one by one."""

import time
from dataclasses import replace

import pytest
from fake_runner import VOCAB, Simulation, completion, make_pooled, make_request, pooled_prompt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.prefill_limit import PrefillLimit
from mpt_serve.engine.request import POSITIONS_PER_PRIORITY, Request
from mpt_serve.engine.sampling_params import Pooling, SamplingParams
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.step_rows import Row, StepRows
from mpt_serve.engine.thread_choice import ThreadChoice
from mpt_serve.engine.token_budget import PromptLimits

MAX_MODEL_LEN = 24


class FixedLimit(PrefillLimit):
    """A limit that no measurement changes."""

    def __init__(self, tokens: int | None, background: int = 1, others: int | None = None) -> None:
        super().__init__([1], 1.0)
        self._tokens = tokens
        self._background = background
        self._others = others

    @property
    def tokens(self) -> int | None:
        return self._tokens

    def beside(self, num_tokens: int) -> PromptLimits:
        return replace(super().beside(num_tokens), others=self._others)

    def background(self, num_tokens: int) -> int:
        return self._background


class Histories(RuleBasedStateMachine):
    """Requests come, are cancelled and are computed in any order, in pools of all sizes from just enough on.

    After every rule all blocks and slots add up; at the end every request that was not cancelled has generated exactly
    what it generates alone, the pipeline has returned exactly that, and every block is free.
    """

    @initialize(
        max_num_seqs=st.integers(1, 5),
        spare_tokens=st.integers(1, 20),
        spare_samples=st.integers(0, 6),
        block_size=st.sampled_from([1, 2, 4, 8]),
        spare_blocks=st.integers(0, 12),
        prefix_caching=st.booleans(),
        max_tokens_beside=st.none() | st.integers(1, 24),
        max_background=st.integers(1, 24),
        max_others=st.none() | st.integers(1, 24),
        patience=st.none() | st.integers(1, 6),
    )
    def start(
        self,
        max_num_seqs: int,
        spare_tokens: int,
        spare_samples: int,
        block_size: int,
        spare_blocks: int,
        prefix_caching: bool,
        max_tokens_beside: int | None,
        max_background: int,
        max_others: int | None,
        patience: int | None,
    ) -> None:
        num_blocks = -(-MAX_MODEL_LEN // block_size) + spare_blocks
        limits = max_num_seqs, max_num_seqs + spare_tokens, max_num_seqs + spare_samples
        self.scheduler = Scheduler(BlockPool(num_blocks, block_size), *limits, prefix_caching, patience)
        limit = FixedLimit(max_tokens_beside, max_background, max_others)
        self.simulation = Simulation(self.scheduler, MAX_MODEL_LEN, max_num_seqs + spare_samples, limit)
        self.requests: list[Request] = []

    @rule(
        # Few prompts, so that many begin alike.
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        max_output=st.integers(0, MAX_MODEL_LEN),
        stop_ids=st.frozensets(st.integers(0, VOCAB - 1), max_size=4),
        choices=st.integers(1, 3),
        priority=st.integers(-2, 2),
        salt=st.sampled_from(["", "", "other"]),
        alternating=st.sampled_from([False, False, True]),
        pooling=st.sampled_from([None, None, None, "mean", "last", "none"]),
        background=st.booleans(),
        expedited=st.booleans(),
    )
    def submit(
        self,
        prompt: list[int],
        max_output: int,
        stop_ids: frozenset[int],
        choices: int,
        priority: int,
        salt: str,
        alternating: bool,
        pooling: Pooling | None,
        background: bool,
        expedited: bool,
    ) -> None:
        if pooling is not None:
            request = make_pooled(f"{len(self.requests)}", prompt, pooling, priority, salt, background, expedited)
            self.requests.append(request)
            self.scheduler.add(request)
            return
        max_output = min(max_output, MAX_MODEL_LEN - len(prompt))
        siblings: list[Request] = []
        for choice in range(choices):
            name = f"{len(self.requests)}.{choice}"
            how = (priority, salt, alternating, background, expedited)
            request = make_request(name, prompt, max_output, stop_ids, siblings, choice, *how)
            self.requests.append(request)
            self.scheduler.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.scheduler.finish(request, "cancelled")
        assert not request.blocks
        assert request.slot is None

    @rule(
        turns=st.integers(1, 6),
        right=st.lists(st.booleans(), max_size=7),
        reads_first=st.booleans(),
        abandons=st.booleans(),
    )
    def compute(self, turns: int, right: list[bool], reads_first: bool, abandons: bool) -> None:
        for _ in range(turns):
            self.turn(right, reads_first, abandons)

    def turn(self, right: list[bool], reads_first: bool, abandons: bool = False) -> None:
        step = self.simulation.turn(right, reads_first, abandons)
        assert step.num_tokens <= self.scheduler.max_num_batched_tokens
        assert len(step.rows) <= self.scheduler.max_num_seqs
        assert len({id(row.request) for row in step.rows}) == len(step.rows)
        kept_back = [row for row in step.rows if row.request.background]
        assert not kept_back or all(other.background for other in self.scheduler.waiting)
        # A step is idle only when the host must first read the one in flight, or when there is nothing to do.
        assert step.rows or self.simulation.busy or not (self.scheduler.running and self.scheduler.waiting)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in self.simulation.drain():
            self.scheduler.check_integrity()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks
        for request in self.requests:
            expected = completion(request)
            if request.finish_reason == "cancelled":
                assert request.output_ids == expected[: len(request.output_ids)]
            else:
                assert request.output_ids == expected
                stopped = bool(expected) and expected[-1] in request.stop_ids
                assert request.finish_reason == ("stop" if stopped else "length")
                assert request.pooled is None or request.pooled.result() == pooled_prompt(request)
            self.check_outputs(request)
        finished = self.scheduler.counters.finished
        assert sum(finished.values()) == len(self.requests)

    def check_outputs(self, request: Request) -> None:
        """The turns have returned every id once, and the end of the request once, with its last id."""
        outputs = self.simulation.outputs.get(request, [])
        assert [token for output in outputs for token in output.token_ids] == request.output_ids
        ends = [output.finish_reason for output in outputs if output.finish_reason is not None]
        assert ends == ([] if request.finish_reason == "cancelled" else [request.finish_reason])
        assert not ends or outputs[-1].finish_reason is not None


test_histories = Histories.TestCase
test_histories.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
class TestManyHistories(Histories.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


def scheduler_of(
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 4,
    budget: int = 16,
    prefix_caching: bool = False,
    patience: int | None = None,
) -> Scheduler:
    return Scheduler(BlockPool(num_blocks, block_size), max_num_seqs, budget, None, prefix_caching, patience)


def add(scheduler: Scheduler, *lengths: int, max_output: int = 8) -> list[Request]:
    requests = [make_request(str(i), range(length), max_output) for i, length in enumerate(lengths)]
    for request in requests:
        scheduler.add(request)
    return requests


def shares(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """(request, start, length) of the next step's rows."""
    return [(row.request.request_id, row.start, row.length) for row in scheduler.schedule().rows]


def test_prompts_are_computed_in_chunks_of_the_budget_in_order_of_arrival() -> None:
    scheduler = scheduler_of(budget=16)
    add(scheduler, 20, 3, 30)
    assert shares(scheduler) == [("0", 0, 16)]
    assert shares(scheduler) == [("0", 16, 4), ("1", 0, 3), ("2", 0, 9)]
    # The first two decode now, without the host having read their first tokens.
    assert shares(scheduler) == [("0", 20, 1), ("1", 3, 1), ("2", 9, 14)]


def test_decode_rows_come_first_and_take_their_token_from_the_device() -> None:
    scheduler = scheduler_of()
    add(scheduler, 5)
    scheduler.schedule()
    add(scheduler, 6)
    step = scheduler.schedule()
    assert step.num_decode == 1
    assert [(row.length, row.token_in_flight, row.samples) for row in step.rows] == [(1, True, 1), (6, False, 1)]


def test_no_row_is_computed_for_a_token_that_max_tokens_rules_out() -> None:
    scheduler = scheduler_of()
    add(scheduler, 5, max_output=2)
    assert shares(scheduler) == [("0", 0, 5)]
    assert shares(scheduler) == [("0", 5, 1)]
    assert shares(scheduler) == []


def test_the_row_of_a_request_that_stopped_is_ignored_and_its_blocks_are_free_at_once() -> None:
    scheduler = scheduler_of()
    request = make_request("a", [1, 2], 8, stop_ids=[7])
    scheduler.add(request)
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert scheduler.accept(first.rows, [7]) == [(first.rows[0], 1)]
    assert request.finish_reason == "stop"
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert scheduler.accept(second.rows, [9]) == []
    assert request.output_ids == [7]


def test_the_youngest_gives_up_its_blocks_and_goes_to_the_front_of_the_queue() -> None:
    scheduler = scheduler_of(num_blocks=5, block_size=2, max_num_seqs=2)
    old, young = add(scheduler, 3, 2)
    waiting = make_request("w", [1], 2)
    scheduler.add(waiting)
    first = scheduler.schedule()  # the old one has two blocks, the young one one
    scheduler.accept(first.rows, [10, 20])
    while not scheduler.num_preemptions:
        before = scheduler.schedule()
        if not scheduler.num_preemptions:
            scheduler.accept(before.rows, [11] * len(before.rows))
    assert scheduler.running == [old]
    assert scheduler.waiting == [young, waiting]
    assert (young.num_computed, young.blocks, young.slot) == (0, [], None)
    assert young.output_ids[0] == 20


def test_a_preempted_request_waits_for_its_token_in_flight() -> None:
    scheduler = scheduler_of(num_blocks=4, block_size=2, max_num_seqs=2)
    old, young = add(scheduler, 3, 2, max_output=4)
    first = scheduler.schedule()
    second = scheduler.schedule()
    scheduler.accept(first.rows, [10, 20])
    while not scheduler.num_preemptions:
        third = scheduler.schedule()
        if not scheduler.num_preemptions:
            scheduler.accept(second.rows, [1] * len(second.rows))
            second = third
    assert young in scheduler.waiting
    assert young.in_flight == 1
    known = len(young.output_ids)
    scheduler.finish(old, "cancelled")
    assert scheduler.schedule().rows == []  # every block is free, but the token is not here yet
    scheduler.accept(second.rows, [1] * len(second.rows))
    assert len(young.output_ids) == known + 1
    assert shares(scheduler) == [("1", 0, young.num_known)]


def test_admission_leaves_a_block_for_each_running_request() -> None:
    scheduler = scheduler_of(num_blocks=3, block_size=4, max_num_seqs=3)
    add(scheduler, 4, 8, max_output=4)
    assert shares(scheduler) == [("0", 0, 4)]  # the second would fit exactly, and be preempted at the next token


def test_no_request_overtakes_one_that_waits_for_blocks() -> None:
    scheduler = scheduler_of(num_blocks=4, block_size=4, max_num_seqs=4)
    add(scheduler, 9, 8, 1, max_output=1)
    assert shares(scheduler) == [("0", 0, 9)]


def test_a_request_that_can_never_fit_is_refused() -> None:
    scheduler = scheduler_of(num_blocks=2, block_size=4)
    scheduler.add(make_request("fits", range(5), 4))  # nine tokens, of which the last is never stored
    with pytest.raises(ValueError, match="can never fit"):
        scheduler.add(make_request("too long", range(5), 5))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda scheduler: scheduler.running.reverse(), "not in order"),
        (lambda scheduler: scheduler.running[0].blocks.pop(), "holders"),
        (lambda scheduler: setattr(scheduler.running[0], "slot", 3), "slots"),
        (lambda scheduler: setattr(scheduler.running[0], "num_computed", 100), "without blocks"),
        (lambda scheduler: setattr(scheduler.running[0], "in_flight", 100), "more than"),
        (lambda scheduler: setattr(scheduler.waiting[0], "slot", 0), "waits"),
    ],
)
def test_check_integrity_sees_what_is_broken(break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    scheduler = scheduler_of(max_num_seqs=2)
    add(scheduler, 4, 4, 4)
    scheduler.schedule()
    scheduler.check_integrity()
    break_it(scheduler)
    with pytest.raises(AssertionError, match=message):
        scheduler.check_integrity()


def test_a_long_prompt_holds_up_the_others_by_one_chunk_at_most() -> None:
    scheduler = scheduler_of(num_blocks=8_000, max_num_seqs=4, budget=512)
    talking = add(scheduler, 10, 20, 30, max_output=100)
    scheduler.schedule()
    scheduler.add(make_request("long", [1] * 16_000, 5))
    computed = 0
    while computed < 16_000:
        step = scheduler.schedule()
        assert [row.request for row in step.rows[:3]] == talking
        assert step.num_tokens <= 512
        computed += step.rows[3].length


def test_priority_is_worth_positions_in_the_queue_and_no_request_starves() -> None:
    scheduler = scheduler_of(max_num_seqs=1)
    scheduler.add(make_request("first", [1], 1))
    patient = make_request("patient", [1], 1, priority=2)
    scheduler.add(patient)
    scheduler.add(make_request("urgent", [1], 1, priority=-1))
    order = []
    for number in range(200):  # one comes for each that is served
        scheduler.add(make_request(str(number), [1], 1))
        rows = scheduler.schedule().rows
        order += [row.request.request_id for row in rows]
        scheduler.accept(rows, [0] * len(rows))
    assert order[:4] == ["urgent", "first", "0", "1"]
    # All that arrived within its two units' places of it went before it, and no more.
    assert order.index("patient") == POSITIONS_PER_PRIORITY * 2


class TestExpedited:
    def test_others_pause_for_its_prompt_but_never_for_two_steps(self) -> None:
        scheduler = scheduler_of()
        add(scheduler, 2, 3)
        assert shares(scheduler) == [("0", 0, 2), ("1", 0, 3)]
        assert shares(scheduler) == [("0", 2, 1), ("1", 3, 1)]
        scheduler.add(make_request("fast", range(40), 8, expedited=True))
        assert shares(scheduler) == [("fast", 0, 16)]
        assert shares(scheduler) == [("0", 3, 1), ("1", 4, 1), ("fast", 16, 14)]
        assert shares(scheduler) == [("fast", 30, 10)]
        for step in range(3):  # from its first token on it is one of them
            assert sorted(shares(scheduler)) == [("0", 4 + step, 1), ("1", 5 + step, 1), ("fast", 40 + step, 1)]

    def test_those_that_run_take_part_in_the_step(self) -> None:
        scheduler = scheduler_of()
        scheduler.add(make_request("slow", range(30), 8))
        scheduler.add(make_request("fast", range(2), 8, expedited=True))
        assert shares(scheduler) == [("fast", 0, 2), ("slow", 0, 14)]
        scheduler.add(make_request("slow 2", range(3), 8))
        scheduler.add(make_request("fast 2", range(3), 8, expedited=True))
        assert shares(scheduler) == [("fast", 2, 1), ("fast 2", 0, 3)]
        assert shares(scheduler) == [("fast", 3, 1), ("fast 2", 3, 1), ("slow", 14, 14)]

    def test_nothing_pauses_for_one_that_cannot_run(self) -> None:
        scheduler = scheduler_of(num_blocks=6, max_num_seqs=2)
        add(scheduler, 8)
        assert shares(scheduler) == [("0", 0, 8)]
        scheduler.add(make_request("for blocks", range(16), 8, expedited=True))
        for step in range(3):
            assert shares(scheduler) == [("0", 8 + step, 1)]
        scheduler = scheduler_of(max_num_seqs=2)
        add(scheduler, 1, 1)
        assert len(shares(scheduler)) == 2
        scheduler.add(make_request("for a slot", range(2), 8, expedited=True))
        for _ in range(3):
            assert len(shares(scheduler)) == 2

    def test_nobody_pauses_for_one_whose_last_token_has_not_been_read(self) -> None:
        scheduler = scheduler_of()
        add(scheduler, 2)
        assert shares(scheduler) == [("0", 0, 2)]
        fast = make_request("fast", range(2), 8, expedited=True)
        scheduler.add(fast)
        assert shares(scheduler) == [("fast", 0, 2)]
        assert shares(scheduler) == [("fast", 2, 1), ("0", 2, 1)]
        scheduler._preempt(fast)  # as if another lacked a block: its prompt is to be computed again
        assert shares(scheduler) == [("0", 3, 1)]

    def test_hidden_states_pause_nobody(self) -> None:
        scheduler = scheduler_of()
        add(scheduler, 2)
        shares(scheduler)
        scheduler.add(make_pooled("states", range(3), "mean", expedited=True))
        assert shares(scheduler) == [("0", 2, 1), ("states", 0, 3)]

    def test_no_request_starves(self) -> None:
        """One comes for each that is served: those within 64 positions go first, and no more."""
        scheduler = scheduler_of(max_num_seqs=1)
        scheduler.add(make_request("patient", [1], 1))
        order = []
        for number in range(100):
            scheduler.add(make_request(str(number), [1], 1, expedited=True))
            rows = scheduler.schedule().rows
            order += [row.request.request_id for row in rows]
            scheduler.accept(rows, [0] * len(rows))
        assert order.index("patient") == 4 * POSITIONS_PER_PRIORITY - 1


def test_the_last_in_order_is_preempted_whichever_came_last() -> None:
    scheduler = scheduler_of(num_blocks=6, block_size=2, max_num_seqs=2)
    low = make_request("low", [1, 2, 3], 8, priority=1)
    scheduler.add(low)
    first = scheduler.schedule()
    high = make_request("high", [1, 2, 3], 8)
    scheduler.add(high)
    second = scheduler.schedule()
    scheduler.accept(first.rows, [9])
    while not scheduler.num_preemptions:
        third = scheduler.schedule()
        scheduler.accept(second.rows, [9] * second.num_samples)
        second = third
    assert scheduler.running == [high]
    assert scheduler.waiting == [low]


def test_blocks_found_in_the_pool_are_not_computed_again() -> None:
    scheduler = scheduler_of(prefix_caching=True)
    (request,) = add(scheduler, 10, max_output=1)
    rows = scheduler.schedule().rows
    scheduler.accept(rows, [5])
    assert request.finish_reason == "length"
    scheduler.add(make_request("same", range(10), 1))
    scheduler.add(make_request("longer", [*range(10), 5, 6], 1))
    scheduler.add(make_request("other", [9, *range(1, 10)], 1))
    assert shares(scheduler) == [("same", 8, 2), ("longer", 8, 4), ("other", 0, 10)]
    assert [request.num_cached for request in scheduler.running] == [8, 8, 0]


def test_what_a_request_without_numbers_has_written_is_not_found_again() -> None:
    scheduler = scheduler_of(prefix_caching=True)
    (broken,) = add(scheduler, 10, max_output=8)
    scheduler.accept(scheduler.schedule().rows, [5])
    scheduler.finish_broken(broken)
    assert (broken.finish_reason, scheduler.counters.without_numbers) == ("error", 1)
    scheduler.add(make_request("same", range(10), 1))
    assert shares(scheduler) == [("same", 0, 10)]


def test_choices_copy_the_block_that_is_not_full_and_compute_one_token() -> None:
    scheduler = scheduler_of()
    first, *_ = add_choices(scheduler, "a", list(range(10)), 3, max_output=4)
    assert shares(scheduler) == [("a", 0, 10)]  # the others wait for it
    step = scheduler.schedule()
    assert [(row.start, row.length, row.samples) for row in step.rows] == [(10, 1, 1), (9, 1, 1), (9, 1, 1)]
    second, third = scheduler.running[1:]
    assert second.blocks[:2] == third.blocks[:2] == first.blocks[:2]
    assert step.copies == [(first.blocks[2], second.blocks[2]), (first.blocks[2], third.blocks[2])]
    scheduler.check_integrity()


def add_choices(scheduler: Scheduler, name: str, prompt: list[int], count: int, max_output: int = 8) -> list[Request]:
    siblings: list[Request] = []
    choices = [make_request(name, prompt, max_output, (), siblings, index) for index in range(count)]
    for request in choices:
        scheduler.add(request)
    return choices


@pytest.mark.parametrize("max_output", [1, 2, 9])
def test_choices_beyond_the_slots_take_over_the_prompt_from_any_that_runs(max_output: int) -> None:
    scheduler = scheduler_of(max_num_seqs=2, budget=16)
    choices = add_choices(scheduler, "six", list(range(33)), 6, max_output)
    rows = [row for step in Simulation(scheduler, 64, 2).drain() for row in step.rows]
    assert sum(min(row.stop, 33) - min(row.start, 33) for row in rows) == 33 + 5  # the last token for each
    for index, request in enumerate(choices):
        assert request.choice_index == index
        assert request.output_ids == completion(request)


def test_a_block_is_not_copied_in_the_step_that_writes_it() -> None:
    scheduler = scheduler_of(prefix_caching=True)
    siblings: list[Request] = []
    other = make_request("other", range(6), 8)
    resumed = make_request("two", range(6), 8, siblings=siblings)
    second = make_request("two", range(6), 8, siblings=siblings, choice_index=1)
    for request in (other, resumed):
        request.output_ids = [1, 2, 3]  # as after preemption
    for request in (other, resumed, second):
        scheduler.add(request)
    step = scheduler.schedule()
    assert [(row.request, row.start) for row in step.rows] == [(other, 0), (resumed, 8)]  # in the other's blocks
    assert step.copies == []
    step = scheduler.schedule()
    assert step.copies == [(resumed.blocks[1], second.blocks[1])]


def test_the_choice_that_scores_the_prompt_computes_all_of_it() -> None:
    scheduler = scheduler_of(max_num_seqs=2, budget=16)
    siblings: list[Request] = []
    params = SamplingParams(max_tokens=4, prompt_logprobs=0, n=2)
    second, first = (Request("a", (1,) * 9, params, 0, 4, index, siblings=siblings) for index in (1, 0))
    scheduler.add(second)  # as when the first was preempted in the middle
    scheduler.schedule()
    scheduler.add(first)
    assert shares(scheduler) == [("a", 9, 1), ("a", 0, 9)]


def test_requests_with_choices_are_admitted_as_fast_as_others() -> None:
    scheduler = scheduler_of(num_blocks=400, max_num_seqs=32, budget=512)
    for number in range(16):
        add_choices(scheduler, str(number), [number] * 20, 2)
    assert [row.length for row in scheduler.schedule().rows] == [20] * 16
    assert [row.start for row in scheduler.schedule().rows] == [20] * 16 + [19] * 16
    assert not scheduler.waiting
    scheduler.check_integrity()


def test_a_request_that_overtakes_a_choice_leaves_it_a_slot() -> None:
    scheduler = scheduler_of(max_num_seqs=3)
    add_choices(scheduler, "two", [1] * 5, 2)
    add(scheduler, 2, 2)
    assert shares(scheduler) == [("two", 0, 5), ("0", 0, 2)]
    assert shares(scheduler) == [("two", 5, 1), ("0", 2, 1), ("two", 4, 1)]


def test_a_request_that_overtakes_a_choice_leaves_it_blocks() -> None:
    scheduler = scheduler_of(num_blocks=9, max_num_seqs=8)
    add_choices(scheduler, "three", [1] * 5, 3)  # two blocks, then one for each, and each grows
    add(scheduler, 4, 4)
    assert shares(scheduler) == [("three", 0, 5), ("0", 0, 4)]
    assert shares(scheduler) == [("three", 5, 1), ("0", 4, 1), ("three", 4, 1), ("three", 4, 1)]
    assert scheduler.num_preemptions == 0


def test_a_request_that_overtakes_a_choice_leaves_it_a_token_of_the_next_step() -> None:
    scheduler = scheduler_of(max_num_seqs=4, budget=16)
    add_choices(scheduler, "two", [1] * 6, 2)
    (long,) = add(scheduler, 23)
    assert shares(scheduler) == [("two", 0, 6)]  # 13 of its tokens would be left, and each of four slots wants one
    assert shares(scheduler) == [("two", 6, 1), ("two", 5, 1), ("0", 0, 14)]
    scheduler.finish(long, "cancelled")
    add_choices(scheduler, "more", [2] * 6, 2)
    scheduler.add(make_request("fits", [1] * 18, 8))
    assert shares(scheduler)[2:] == [("more", 0, 6)]  # no slot is left for another
    for request in list(scheduler.running[:2]):
        scheduler.finish(request, "cancelled")
    assert shares(scheduler) == [("more", 6, 1), ("more", 5, 1), ("fits", 0, 14)]


def test_drafts_are_taken_as_far_as_they_were_right() -> None:
    scheduler = Scheduler(BlockPool(16, 4), 2, 16, max_samples=8)
    (request,) = add(scheduler, 3, max_output=8)
    scheduler.accept(scheduler.schedule().rows, [10])
    step = scheduler.schedule({request: [11, 12, 13]})
    assert [(row.start, row.length, row.samples, row.drafts) for row in step.rows] == [(3, 4, 4, (11, 12, 13))]
    assert step.num_decode == 0
    assert scheduler.accept(step.rows, [11, 12, 99, 14]) == [(step.rows[0], 3)]
    assert request.output_ids == [10, 11, 12, 99]
    assert (request.num_computed, request.num_tokens) == (6, 7)  # the draft that was wrong is computed over
    assert [(row.start, row.length) for row in scheduler.schedule({request: [1] * 9}).rows] == [(6, 4)]  # eight in all


def test_drafts_leave_samples_for_requests_that_arrive() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 4, 32, max_samples=6)
    (request,) = add(scheduler, 3, max_output=20)
    scheduler.accept(scheduler.schedule().rows, [10])
    for name in ("b", "c"):
        scheduler.add(make_request(name, [1, 2], 2))
    scheduler.add(make_pooled("d", [1] * 20, "mean"))  # samples nothing
    step = scheduler.schedule({request: [11] * 9}, lambda tokens: pooled_limit(0))
    assert [(row.request.request_id, row.samples) for row in step.rows] == [("0", 4), ("b", 1), ("c", 1)]


def test_prompts_take_what_the_limit_leaves_beside_running_streams() -> None:
    scheduler = Scheduler(BlockPool(100, 8), 4, 64)
    simulation = Simulation(scheduler, 200, 4, FixedLimit(24))
    first = make_request("first", [1] * 100, 60)
    scheduler.add(first)
    assert [simulation.turn().num_tokens for _ in range(2)] == [64, 36]  # alone: all that a step holds
    scheduler.add(make_request("second", [0] * 100, 5))
    chunks = [simulation.turn().num_tokens for _ in range(5)]
    assert chunks == [24, 24, 24, 24, 9]
    for tokens in (5, None):
        scheduler.add(make_request(f"third {tokens}", [0, 1] * 50, 5))
        simulation._pipeline._prefill_limit = FixedLimit(tokens)
        step = simulation.turn()
        assert step.num_tokens - step.num_decode == (64 - step.num_decode if tokens is None else 16)
        scheduler.finish(scheduler.running[-1], "cancelled")


def test_the_limit_follows_the_durations_of_steps() -> None:
    limit = PrefillLimit([16, 32, 64, 128, 256, 512], max_gap_s=0.2)
    assert limit.tokens is None
    limit.measured(300, 0.5)
    few = limit.tokens
    assert few is not None
    assert few < 256
    for _ in range(5):
        for size in (16, 32, 64, 128, 256):
            limit.measured(size, size / 1000)
    assert limit.tokens == 128
    for _ in range(9):
        limit.measured(100, 0.3)  # the prompts are longer now
    assert limit.tokens == 64
    for _ in range(9):
        for size in (16, 32, 64, 128):
            limit.measured(size, 1.0)
    assert limit.tokens == 16


def test_prompts_fill_a_step_that_takes_longer_than_the_limit_up_to_its_padded_size() -> None:
    limit = PrefillLimit([1, 2, 4, 8, 16, 32, 64, 128], max_gap_s=0.2)
    for _ in range(3):
        for size, seconds in ((1, 0.3), (16, 0.32), (32, 0.6), (64, 1.2)):
            limit.measured(size, seconds)
    # Not even a decode row alone stays within the limit: 16 tokens of prompts make 1 row a step of 32, and 20 rows one
    # of 64, which costs the same whether it is full or not.
    assert [limit.beside(rows).tokens for rows in (1, 16, 20, 112, 120)] == [32, 32, 64, 128, 136]


def test_the_background_waits_for_all_others_and_resumes_after_them() -> None:
    scheduler = scheduler_of(max_num_seqs=3)
    patient = make_request("patient", [1] * 5, 8, background=True)
    scheduler.add(patient)
    assert shares(scheduler) == [("patient", 0, 5)]
    (first,) = add(scheduler, 20)
    assert shares(scheduler) == [("0", 0, 16)]  # neither beside a prompt that waits
    assert shares(scheduler) == [("0", 16, 4)]  # nor beside one that is computed
    step = scheduler.schedule(background=lambda tokens: 1 + tokens)
    assert [(row.request, row.length) for row in step.rows] == [(first, 1), (patient, 1)]
    step = scheduler.schedule(background=lambda tokens: tokens)
    assert [row.request for row in step.rows] == [first]
    scheduler.finish(first, "cancelled")
    assert [row.request for row in scheduler.schedule(background=lambda tokens: tokens + 1).rows] == [patient]


def test_the_background_has_its_turn_on_a_server_that_is_never_idle() -> None:
    """One request in three steps that have nothing for any of them, whether it runs or waits, and one at a time."""
    scheduler = scheduler_of(max_num_seqs=2, patience=3)
    running = make_request("running", [2] * 3, 50, background=True)
    scheduler.add(running)
    assert shares(scheduler) == [("running", 0, 3)]
    (other,) = add(scheduler, 3, max_output=50)
    waiting = make_request("waiting", [3] * 2, 2, background=True)
    scheduler.add(waiting)
    none = lambda tokens: tokens  # noqa: E731
    assert [row.request for row in scheduler.schedule(background=none).rows] == [other]
    for _ in range(2):
        assert [row.request for row in scheduler.schedule(background=none).rows] == [other]
    assert [row.request for row in scheduler.schedule(background=none).rows] == [running, other]
    assert not running.background
    for _ in range(5):  # the next one has its turn when this one has ended
        assert [row.request for row in scheduler.schedule(background=none).rows] == [running, other]
    scheduler.check_integrity()
    scheduler.finish(running, "cancelled")
    assert [row.request for row in scheduler.schedule(background=none).rows] == [other, waiting]
    assert not waiting.background
    scheduler.check_integrity()


def test_a_step_that_is_abandoned_counts_as_one_without_the_background() -> None:
    scheduler = scheduler_of(max_num_seqs=2, patience=3)
    simulation = Simulation(scheduler, 200, 6)
    patient = make_request("patient", [1] * 3, 5, background=True)
    scheduler.add(patient)
    for _ in range(3):
        assert [row.start for row in simulation.turn(abandons=True).rows] == [0]
        simulation.turn_to_end(abandons=True)
        assert (patient.num_computed, patient.in_flight) == (0, 0)
    step = simulation.turn(abandons=True)
    assert [row.request for row in step.rows] == [patient]
    assert not step.background
    list(simulation.drain())
    assert patient.output_ids == completion(patient)


def test_blocks_of_a_step_that_is_abandoned_are_not_found() -> None:
    """The step before has rows of others and of the background, and is read when both are scheduled."""
    scheduler = scheduler_of(max_num_seqs=2, prefix_caching=True)
    simulation = Simulation(scheduler, 200, 6)
    other = make_request("other", [2] * 3, 3)
    patient = make_request("patient", [1] * 40, 3, background=True)
    scheduler.add(other)
    scheduler.add(patient)
    mixed = 0
    for _ in range(20):
        step = simulation.turn()
        mixed += not step.background and len(step.rows) == 2
        if step.rows and step.background:
            break
    assert mixed
    simulation.turn_to_end(abandons=True)
    scheduler.check_integrity()
    later = make_request("later", [1] * 39 + [5], 3)
    scheduler.add(later)
    list(simulation.drain())
    assert [request.output_ids for request in (other, patient, later)] == list(map(completion, (other, patient, later)))


def test_what_others_have_generated_does_not_wait_for_a_step_in_the_background() -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    simulation = Simulation(scheduler, 200, 6)
    other = make_request("other", [2] * 3, 1)
    scheduler.add(other)
    scheduler.add(make_request("patient", [1] * 3, 5, background=True))
    waits = []
    completes = simulation._runner.completes
    simulation._runner.completes = lambda sampled: waits.append(sampled) or completes(sampled)  # type: ignore
    while other.finish_reason is None:
        simulation.turn()
    assert simulation.outputs[other]
    assert not waits


def test_a_pause_after_the_background_is_no_part_of_a_step() -> None:
    class Limit(FixedLimit):
        def measured(self, num_tokens: int, seconds: float) -> None:
            durations.append(seconds)

    durations: list[float] = []
    scheduler = scheduler_of(max_num_seqs=2)
    simulation = Simulation(scheduler, 200, 6, Limit(None))
    scheduler.add(make_request("patient", [1] * 3, 2, background=True))
    list(simulation.drain())
    assert durations
    time.sleep(0.2)
    add(scheduler, 3)
    list(simulation.drain())
    assert max(durations) < 0.2


def test_steps_that_nobody_waits_for_leave_a_core_to_others_and_measure_nothing() -> None:
    class Threads(ThreadChoice):
        def __init__(self) -> None:
            super().__init__([1, 2], lambda threads: None)
            self.calls: set[str] = set()

        def use(self, size: int, *, spare_one: bool = False) -> None:
            self.calls.add("spares one" if spare_one else "uses all")

        def measured(self, size: int, seconds: float) -> None:
            self.calls.add("measured")

    scheduler = scheduler_of()
    simulation = Simulation(scheduler, 200, 6)
    threads = simulation._pipeline._threads = Threads()
    scheduler.add(make_request("background", [1] * 3, 20, background=True))
    for _ in range(4):
        simulation.turn()
    assert threads.calls == {"spares one"}
    scheduler.add(make_request("other", [1] * 3, 20))
    threads.calls.clear()
    for _ in range(4):
        simulation.turn()
    assert threads.calls == {"uses all", "measured"}


def test_a_step_beside_the_background_costs_no_search_for_prompts() -> None:
    """Limits take longer to find than a step without prompts to schedule."""
    scheduler = scheduler_of(max_num_seqs=3)
    asked: list[int] = []

    def limits(tokens: int) -> PromptLimits:
        asked.append(tokens)
        return PromptLimits()

    def rows(tokens_behind: int = 0) -> list[tuple[str, int]]:
        step = scheduler.schedule(limits=limits, background=lambda tokens: tokens + tokens_behind)
        return [(row.request.request_id, row.length) for row in step.rows]

    scheduler.add(make_request("running", [2] * 3, 50, background=True))
    assert rows(3) == [("running", 3)]
    (other,) = add(scheduler, 3, max_output=50)
    scheduler.add(make_request("waiting", [3] * 2, 2, background=True))
    assert rows() == [("0", 3)]
    asked.clear()
    assert [rows() for _ in range(3)] == [[("0", 1)]] * 3
    assert asked == []
    assert rows(2) == [("0", 1), ("running", 1), ("waiting", 1)]
    scheduler.finish(other, "cancelled")
    assert rows(3) == [("running", 1), ("waiting", 1)]
    assert asked == [2]
    scheduler.check_integrity()


def test_prompts_in_the_background_take_what_the_limit_leaves() -> None:
    scheduler = scheduler_of(max_num_seqs=3)
    for name in ("a", "b"):
        scheduler.add(make_request(name, [ord(name)] * 9, 8, background=True))
    computed = [
        [(row.request.request_id, row.length) for row in scheduler.schedule(background=lambda tokens: 6).rows]
        for _ in range(4)
    ]
    assert computed == [[("a", 6)], [("a", 3), ("b", 3)], [("a", 1), ("b", 5)], [("a", 1), ("b", 1)]]


def test_the_background_gives_up_slots_and_blocks_to_others() -> None:
    scheduler = scheduler_of(num_blocks=8, block_size=4, max_num_seqs=2)
    patient = [make_request(name, [1 + ord(name)] * 8, 8, background=True) for name in "ab"]
    for request in patient:
        scheduler.add(request)
    assert [name for name, _, _ in shares(scheduler)] == ["a", "b"]
    (first,) = add(scheduler, 12, max_output=4)
    assert shares(scheduler) == [("0", 0, 12)]  # the slot of b
    assert scheduler.running == [first, patient[0]]
    (second,) = add(scheduler, 12, max_output=4)
    assert scheduler.waiting == [second, patient[1]]
    scheduler.schedule()  # the slot and the blocks of a
    assert scheduler.running == [first, second]
    assert scheduler.waiting == patient
    scheduler.check_integrity()
    scheduler.finish(first, "cancelled")
    scheduler.finish(second, "cancelled")
    patient[0].in_flight = patient[1].in_flight = 0
    assert [name for name, _, _ in shares(scheduler)] == ["a", "b"]


def test_the_background_gives_up_as_many_blocks_as_others_need() -> None:
    scheduler = scheduler_of(num_blocks=8, block_size=4, max_num_seqs=4)
    patient = [make_request(name, [1 + ord(name)] * 8, 8, background=True) for name in "ab"]
    for request in patient:
        scheduler.add(request)
    scheduler.schedule()
    (first,) = add(scheduler, 16, max_output=4)
    scheduler.schedule()
    assert (scheduler.running, scheduler.waiting) == ([first, patient[0]], [patient[1]])


def pooled_limit(pooled: int | None) -> PromptLimits:
    return PromptLimits(16, pooled)


def test_hidden_states_wait_for_their_share_beside_streams() -> None:
    scheduler = scheduler_of(max_num_seqs=4, budget=32)
    (stream,) = add(scheduler, 3, max_output=30)
    rows = scheduler.schedule().rows
    scheduler.add(make_pooled("first", [1] * 10, "mean"))
    scheduler.add(make_pooled("second", [1] * 20, "mean"))
    prompt = make_request("prompt", [2] * 5, 8)
    scheduler.add(prompt)

    def step(pooled: int | None) -> list[tuple[str, int, int]]:
        nonlocal rows
        before, rows = rows, scheduler.schedule(limits=lambda tokens: pooled_limit(pooled)).rows
        scheduler.accept(before, [0] * sum(row.samples for row in before))
        scheduler.check_integrity()
        return [(row.request.request_id, row.start, row.length) for row in rows if row.request is not stream]

    assert step(1) == [("prompt", 0, 5)]  # one token is the stream's
    assert [request.request_id for request in scheduler.running] == ["0", "first", "prompt"]  # one waits with a slot
    assert [request.request_id for request in scheduler.waiting] == ["second"]
    assert step(5) == [("prompt", 5, 1), ("first", 0, 3)]
    assert step(2) == [("prompt", 6, 1)]
    assert step(None) == [("prompt", 7, 1), ("first", 3, 7), ("second", 0, 9)]  # as much as any prompts
    scheduler.finish(stream, "cancelled")
    scheduler.finish(prompt, "cancelled")
    assert step(0) == [("second", 9, 11)]  # beside no stream


def test_hidden_states_alone_are_computed_as_prompts_are() -> None:
    scheduler = scheduler_of(max_num_seqs=4, budget=16)
    for name in ("a", "b", "c"):
        scheduler.add(make_pooled(name, [1] * 9, "none"))
    steps = [scheduler.schedule(limits=lambda tokens: pooled_limit(0)) for _ in range(2)]
    assert [[(row.start, row.length) for row in step.rows] for step in steps] == [[(0, 9), (0, 7)], [(7, 2), (0, 9)]]


def test_no_number_of_waiting_requests_makes_a_step_slow() -> None:
    scheduler = scheduler_of(max_num_seqs=4, budget=32)
    add(scheduler, 3, max_output=30)
    scheduler.schedule()
    for number in range(1100):
        scheduler.add(make_pooled(str(number), [1] * 10, "last"))
    late = make_request("late", [1], 1)
    scheduler.add(late)
    scheduler.schedule(limits=lambda tokens: pooled_limit(0))
    assert late in scheduler.waiting


class TestTheShareOfTheBackground:
    def limit(self, **seconds: float) -> PrefillLimit:
        return TestTheShareOfHiddenStates().limit(**seconds)

    def test_beside_others_it_is_none(self) -> None:
        limit = self.limit(_1=0.01, _8=0.0102, _12=0.0104)
        assert [limit.background(tokens) for tokens in (1, 5, 999)] == [1, 5, 999]

    def test_alone_its_steps_are_short(self) -> None:
        limit = self.limit(_1=0.01, _8=0.011, _16=0.0124, _32=0.03)
        assert limit.background(0) == 16
        assert PrefillLimit([64], 0.2).background(0) == 64


class TestTheLimitBesideExpeditedRequests:
    SIZES = (1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512)

    def test_prompts_of_others_share_a_limit(self) -> None:
        scheduler = Scheduler(BlockPool(100, 8), 6, 64)
        limits = lambda tokens: PromptLimits(50, others=24)  # noqa: E731
        fast = make_request("fast", [1] * 3, 60, expedited=True)
        scheduler.add(fast)
        assert [row.length for row in scheduler.schedule(limits=limits).rows] == [3]
        for first, name in enumerate("abc", 2):
            scheduler.add(make_request(name, [first] * 20, 60))
        steps = [
            [(row.request.request_id, row.length) for row in scheduler.schedule(limits=limits).rows] for _ in "123"
        ]
        assert steps == [
            [("fast", 1), ("a", 20), ("b", 3)],
            [("fast", 1), ("a", 1), ("b", 17), ("c", 5)],
            [("fast", 1), ("a", 1), ("b", 1), ("c", 15)],
        ]
        scheduler.add(make_request("d", [5] * 60, 60))
        scheduler.add(make_request("fast 2", [6] * 40, 60, expedited=True))
        step = scheduler.schedule(limits=limits)
        assert [(row.request.request_id, row.length) for row in step.rows] == [("fast", 1), ("fast 2", 40)]

    def test_hidden_states_of_others_count_towards_it(self) -> None:
        scheduler = Scheduler(BlockPool(100, 8), 6, 64)
        limits = lambda tokens: PromptLimits(50, 40, others=24)  # noqa: E731
        scheduler.add(make_request("fast", [1] * 3, 60, expedited=True))
        scheduler.schedule(limits=limits)
        scheduler.add(make_pooled("states", [1] * 30, "mean"))
        scheduler.add(make_request("slow", [1] * 30, 8))
        step = scheduler.schedule(limits=limits)
        assert [(row.request.request_id, row.length) for row in step.rows] == [("fast", 1), ("states", 23)]

    def test_it_is_there_while_expedited_requests_run_and_for_some_steps_after_them(self) -> None:
        limit = PrefillLimit(self.SIZES, 0.2)
        for size, seconds in {8: 0.01, 16: 0.013, 32: 0.014, 64: 0.05, 512: 0.1}.items():
            for _ in range(3):
                limit.measured(size, seconds)
        fast, slow = make_request("fast", [1] * 9, 8, expedited=True), make_request("slow", [1] * 9, 8)
        steps = {request: StepRows([Row(request, 0, 9, 1, False)], 0) for request in (fast, slow)}
        limit.scheduled(steps[slow])
        assert limit.beside(8).others is None
        limit.scheduled(steps[fast])
        assert limit.beside(8).others == 32
        assert limit.beside(20).others == 64  # the next size, whatever it costs
        assert limit.beside(512).others == 512
        remembered = 0
        while limit.beside(8).others is not None:
            limit.scheduled(steps[slow])
            remembered += 1
        assert remembered > 100


class TestTheShareOfHiddenStates:
    SIZES = (1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512)

    def limit(self, **seconds: float) -> PrefillLimit:
        limit = PrefillLimit(self.SIZES, 0.2)
        for _ in range(3):
            for size, cost in seconds.items():
                limit.measured(int(size[1:]), cost)
        return limit

    def test_nothing_is_limited_before_anything_is_known(self) -> None:
        assert PrefillLimit(self.SIZES, 0.2).beside(8) == PromptLimits()

    def test_tokens_that_cost_hardly_any_time_are_computed_in_every_step(self) -> None:
        limit = self.limit(_8=0.01, _12=0.0105, _32=0.0109, _64=0.02, _512=0.1)
        limit.scheduled(StepRows([Row(make_pooled("pooled", [1] * 20, "mean"), 0, 9, 0, False)], 0))
        assert limit.beside(8) == PromptLimits(512, 32)
        assert limit.beside(20).pooled == 32  # they are computed as padding otherwise

    def test_where_they_cost_time_one_of_many_steps_is_large(self) -> None:
        limit = self.limit(_8=0.01, _12=0.013, _16=0.014, _512=0.1)
        stream, pooled = make_request("stream", [1], 8), make_pooled("pooled", [1] * 20, "mean")
        alone = StepRows([Row(stream, 3, 1, 1, False)], 1)
        assert limit.beside(8) == PromptLimits(512, None)
        limit.scheduled(StepRows([*alone.rows, Row(pooled, 0, 9, 0, False)], 1))
        limited = 0
        while limit.beside(8).pooled is not None:
            assert limit.beside(8).pooled == 8
            limit.scheduled(alone)
            limited += 1
        assert limited > 100  # fewer than one step of 100 takes longer
        limit.scheduled(StepRows([], 0))  # such steps count neither way
        assert limit.beside(8).pooled is None

    def test_the_next_size_is_tried_where_its_cost_is_not_known(self) -> None:
        assert self.limit(_8=0.01, _512=0.1).beside(8).pooled == 12

    def test_where_large_steps_would_take_too_long_there_are_a_few_tokens_in_every_step(self) -> None:
        limit = self.limit(_8=0.1, _12=0.12, _16=0.15, _32=0.3)
        assert limit.beside(8) == PromptLimits(32, 12)
        assert limit.beside(512).pooled == 512
