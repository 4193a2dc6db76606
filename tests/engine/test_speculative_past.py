"""Drafts from the outputs of requests that have ended."""

import random
from collections.abc import Sequence

import pytest
from engine_helpers import draft_freely, generate
from hypothesis import given
from hypothesis import strategies as st
from small_engine import SETTINGS, VOCAB_LIMIT

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine import Engine
from mpt_serve.engine.request import Request
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.speculative import NgramDrafter
from mpt_serve.engine.speculative.past_outputs import PastFollower, PastOutputs
from tests.engine.test_speculative_ngram import SIZES, Decoding, measured

TEXT = random.Random(3).sample(range(1000), 400)
OTHER = random.Random(4).sample(range(2000, 3000), 60)  # ids of prompts, which no output has


def ended(output: Sequence[int], prompt: Sequence[int] = (), **params: object) -> Request:
    sampling = SamplingParams(max_tokens=len(output), **params)  # type: ignore[arg-type]
    return Request("r", tuple(prompt), sampling, seed=0, max_output=len(output), output_ids=list(output))


def drafter(tokens: int | None = 10_000) -> NgramDrafter:
    return measured(NgramDrafter(SIZES, past_output_tokens=tokens))


def run(own: NgramDrafter, expected: Sequence[int], prompt: Sequence[int] = OTHER, **params: object) -> Decoding:
    """Generate an output to its end."""
    decoding = Decoding(own, prompt, expected)
    decoding.request.params = SamplingParams(max_tokens=len(expected), **params)  # type: ignore[arg-type]
    decoding.run()
    own.forget(decoding.request)
    return decoding


def test_an_output_that_another_request_had_takes_a_fraction_of_the_steps() -> None:
    own = drafter()
    assert len(run(own, TEXT[:200]).steps) == 200
    assert len(run(own, TEXT[:200]).steps) < 200 / 5
    assert len(run(own, TEXT[50:150], OTHER[:20]).steps) < 100 / 3  # it begins in the middle of the other's


def test_the_beginning_is_found_by_the_end_of_the_prompt() -> None:
    own = drafter()
    for question in range(6):  # it takes some to learn that answers begin alike
        steps = run(own, TEXT[:40], [*OTHER[question : question + 10], 7, 8, 9]).steps
    assert steps[0] > 0


def test_without_past_outputs_each_request_is_alone() -> None:
    own = drafter(None)
    run(own, TEXT[:200])
    assert len(run(own, TEXT[:200]).steps) == 200


def test_requests_with_a_cache_salt_have_no_part_in_it() -> None:
    own = drafter()
    run(own, TEXT[:200], cache_salt="mine")
    assert len(run(own, TEXT[:200]).steps) == 200
    assert len(run(own, TEXT[:200], cache_salt="mine").steps) == 200
    assert len(run(own, TEXT[:200]).steps) < 200 / 5


def test_outputs_that_mislead_are_soon_given_up() -> None:
    own = drafter()
    run(own, TEXT)
    source = random.Random(1)
    drafted = []
    for i in range(4):
        misleading = []
        for j in range(60):
            at = source.randrange(len(TEXT) - 2)
            misleading += [*TEXT[at : at + 2], 4000 + 60 * i + j]
        decoding = run(own, misleading)
        drafted.append(sum(length > 0 for length in decoding.steps) / len(decoding.steps))
    assert drafted[0] > 0
    assert drafted[-1] < 0.05


@pytest.mark.parametrize(("rows", "seconds", "drafts"), [(8, 5e-4, False), (8, 2e-3, True), (1, 1e-4, True)])
def test_steps_too_short_for_the_hosts_work_have_no_drafts(rows: int, seconds: float, drafts: bool) -> None:
    own = NgramDrafter((1, 4, 8, 16, 32, 64), past_output_tokens=10_000)
    for tokens in (1, 4, 8, 16, 32, 64):
        for _ in range(3):
            own.step_took(tokens, seconds)
    requests = [ended([], [*TEXT[:50], *TEXT[:20]]) for _ in range(rows)]
    for request in requests:
        request.max_output = 100
    assert own.worth_reading(requests, rows) == drafts
    assert any(own.plan(requests, rows)) == drafts


def counted(past: PastOutputs) -> PastOutputs:
    for _ in range(20):
        past.count()
    return past


def num_known(past: PastOutputs, ids: Sequence[int]) -> int:
    """Return how many ids are proposed after the two before them."""
    return sum(PastFollower(past, ids[i - 2 : i]).ids(1) == [ids[i]] for i in range(2, len(ids)))


def test_the_most_recent_outputs_are_kept_within_the_capacity() -> None:
    past, ids = PastOutputs(100), range(1, 1001)
    for number in range(50):
        past.add(ended(ids[10 * number : 10 * number + 10]))
        past.count()
        assert num_known(past, ids[10 * number : 10 * number + 10]) == 8
        assert min(8 * number, 40) <= num_known(past, ids) <= 100
    past.add(ended(ids))  # more than the capacity
    past.count()
    assert 40 <= num_known(past, ids) <= 100


def test_a_long_output_is_counted_in_parts() -> None:
    past = PastOutputs(100_000)
    past.add(ended(range(3000)))
    past.count()
    assert 0 < num_known(past, range(3000)) < 1000
    assert num_known(counted(past), range(3000)) == 2998
    past.add(ended(range(50_000, 150_000)))  # what is not counted yet has its limit, too
    past.add(ended(range(7000, 7400)))
    assert num_known(counted(past), range(7000, 7400)) == 398


def test_what_followed_more_often_is_proposed_and_trusted_more() -> None:
    past = PastOutputs(10_000)
    for number in range(200):  # after 1, 2 mostly 3; after 5, 6 always 7
        for ids in ([1, 2, 3 if number % 4 else 4], [5, 6, 7]):
            follower = PastFollower(past, [9, *ids[:2]])
            follower.advance(ids[2])  # which learns how often it was right
            past.add(ended(ids))
            past.count()
    often, always = PastFollower(past, [9, 1, 2]), PastFollower(past, [9, 5, 6])
    assert (often.ids(1), always.ids(1)) == ([3], [7])
    assert 0.5 < often.rate < 0.9 < always.rate


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=30), min_size=1, max_size=20), st.integers(1, 11))
def test_what_is_proposed_has_followed_in_some_output(outputs: list[list[int]], count: int) -> None:
    past = PastOutputs(10_000)
    for output in outputs:
        past.add(ended(output))
    follower = PastFollower(counted(past), outputs[0][:2])
    ids, survivals = follower.ids(count), follower.survivals(count)
    assert len(ids) == len(survivals) <= count
    assert survivals == sorted(survivals, reverse=True)
    assert ids
    previous = outputs[0][:2]
    for token in ids:
        triples = [output[i : i + 3] for output in outputs for i in range(len(output) - 2)]
        assert [*previous, token] in triples
        previous = [previous[1], token]


def test_an_engine_gives_the_same_ids_in_fewer_steps(weights: Weights, config: MptConfig) -> None:
    settings = SETTINGS.replace(pre_compile=False, prefix_caching=False, past_output_tokens=10_000)
    params = [SamplingParams(seed=seed, max_tokens=30, temperature=1.0) for seed in range(3)]
    prompts = [[5, 6, 7, 8 + seed] for seed in range(3)]
    with Engine(weights, config, settings.replace(speculation="none"), VOCAB_LIMIT) as engine:
        expected = generate(engine, prompts, params)
    with Engine(weights, config, settings, VOCAB_LIMIT) as engine:
        draft_freely(engine)
        assert generate(engine, prompts, params) == expected
        before = engine.stats()
        assert generate(engine, prompts, params) == expected
        after = engine.stats()
    assert after.accepted_tokens - before.accepted_tokens > 45  # of 90
    assert after.steps - before.steps < before.steps
