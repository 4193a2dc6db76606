"""Drafts from the outputs of requests that have ended."""

import random
from collections.abc import Sequence

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
    for i in range(3):
        misleading = []
        for j in range(60):
            at = source.randrange(len(TEXT) - 2)
            misleading += [*TEXT[at : at + 2], 4000 + 60 * i + j]
        decoding = run(own, misleading)
    assert sum(length > 0 for length in decoding.steps) < 0.05 * len(decoding.steps)


def num_known(past: PastOutputs, ids: Sequence[int]) -> int:
    """Return how many ids are proposed after the two before them."""
    return sum(PastFollower(past, ids[i - 2 : i]).ids(1) == [ids[i]] for i in range(2, len(ids)))


def test_the_most_recent_outputs_are_kept_within_the_capacity() -> None:
    past, ids = PastOutputs(100), range(1, 1001)
    for number in range(50):
        past.add(ended(ids[10 * number : 10 * number + 10]))
        assert num_known(past, ids[10 * number : 10 * number + 10]) == 8
        assert min(8 * number, 40) <= num_known(past, ids) <= 100
    past.add(ended(ids))  # more than the capacity
    assert 40 <= num_known(past, ids) <= 100


def test_what_followed_more_often_is_proposed_and_trusted_more() -> None:
    past = PastOutputs(10_000)
    for number in range(40):
        past.add(ended([1, 2, 3 if number % 4 else 4]))
        for _ in range(20):
            past.observe(PastFollower(past, [1, 2])._kind, hit=False)  # as little as half of them is worth
    past.add(ended([5, 6, 7]))
    assert PastFollower(past, [5, 6]).rate > PastFollower(past, [1, 2]).rate
    follower = PastFollower(past, [9, 1, 2])
    assert follower._next == 3


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=30), min_size=1, max_size=20), st.integers(1, 11))
def test_what_is_proposed_has_followed_in_some_output(outputs: list[list[int]], count: int) -> None:
    past = PastOutputs(10_000)
    for output in outputs:
        past.add(ended(output))
    follower = PastFollower(past, outputs[0][:2])
    ids, survivals = follower.ids(count), follower.survivals(count)
    assert len(ids) == len(survivals) <= count
    assert survivals == sorted(survivals, reverse=True)
    previous = outputs[0][:2]
    for token in ids:
        triples = [output[i : i + 3] for output in outputs for i in range(len(output) - 2)]
        assert [*previous, token] in triples
        previous = [previous[1], token]


def test_an_engine_gives_the_same_ids_in_fewer_steps(weights: Weights, config: MptConfig) -> None:
    settings = SETTINGS.replace(pre_compile=False, prefix_caching=False)
    params = [SamplingParams(seed=seed, max_tokens=30, temperature=1.0) for seed in range(3)]
    prompts = [[5, 6, 7, 8 + seed] for seed in range(3)]
    with Engine(weights, config, settings, VOCAB_LIMIT) as engine:
        draft_freely(engine)
        first = generate(engine, prompts, params)
        before = engine.stats()
        second = generate(engine, prompts, params)
        after = engine.stats()
    assert second == first
    assert after.accepted_tokens - before.accepted_tokens > 45  # of 90
    assert after.steps - before.steps < before.steps
