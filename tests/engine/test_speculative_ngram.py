"""Prompt lookup on requests: who gets a draft, which one, and when none."""

import random
from collections.abc import Sequence

import pytest

from mpt_serve.engine.request import Request
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.speculative import NgramDrafter

SIZES = (1, 4, 8, 12)
TEXT = random.Random(0).sample(range(1000), 300)


def request_of(prompt: Sequence[int], max_output: int = 500, stop_ids: Sequence[int] = (), **params: object) -> Request:
    sampling = SamplingParams(max_tokens=max_output, **params)  # type: ignore[arg-type]
    return Request("r", tuple(prompt), sampling, seed=0, max_output=max_output, stop_ids=frozenset(stop_ids))


def measured(drafter: NgramDrafter) -> NgramDrafter:
    for tokens, seconds in ((1, 1.0), (4, 1.1), (8, 1.3), (12, 1.4)):
        for _ in range(3):
            drafter.step_took(tokens, seconds)
    return drafter


@pytest.fixture
def drafter() -> NgramDrafter:
    return measured(NgramDrafter(SIZES))


def propose(drafter: NgramDrafter, requests: Sequence[Request]) -> list[list[int]]:
    return drafter.draft(requests, drafter.plan(requests, len(requests)))


class Decoding:
    """One request in an engine that generates `expected`, whatever is drafted."""

    def __init__(self, drafter: NgramDrafter, prompt: Sequence[int], expected: Sequence[int]) -> None:
        self._drafter = drafter
        self.request = request_of(prompt, len(expected))
        self.expected = list(expected)
        self.steps: list[int] = []  # ids drafted for each

    def run(self) -> None:
        output = self.request.output_ids
        while len(output) < len(self.expected):
            (draft,) = propose(self._drafter, [self.request])
            rest = self.expected[len(output) :]
            accepted = next((i for i, token in enumerate(draft) if token != rest[i]), len(draft))
            output += rest[: accepted + 1]
            self.steps.append(len(draft))
            if draft:
                self._drafter.observe(self.request, len(draft), accepted)


def misleading(pairs: int) -> list[int]:
    """Pairs of TEXT that never go on as they do there."""
    source, ids = random.Random(1), []
    for i in range(pairs):
        at = source.randrange(len(TEXT) - 1)
        ids += [*TEXT[at : at + 2], 3000 + i]
    return ids


def test_a_copied_text_takes_a_fraction_of_the_steps(drafter: NgramDrafter) -> None:
    decoding = Decoding(drafter, TEXT, TEXT[50:250])
    decoding.run()
    assert decoding.request.output_ids == decoding.expected
    assert len(decoding.steps) < 200 / 6
    stats = drafter.stats
    assert stats.rows == sum(length > 0 for length in decoding.steps)
    assert stats.drafted == sum(decoding.steps)
    assert stats.accepted > 0.8 * stats.drafted
    assert stats.emitted == stats.accepted + stats.rows


def test_a_text_that_does_not_repeat_gets_no_drafts(drafter: NgramDrafter) -> None:
    decoding = Decoding(drafter, TEXT, range(2000, 2200))
    decoding.run()
    assert sum(decoding.steps) == 0
    assert drafter.stats.rows == 0


def test_misleading_matches_are_soon_given_up(drafter: NgramDrafter) -> None:
    decoding = Decoding(drafter, TEXT, misleading(150))
    decoding.run()
    assert sum(decoding.steps[:60]) > 0
    assert sum(length > 0 for length in decoding.steps[60:]) < 0.02 * len(decoding.steps)


def test_a_text_that_starts_to_copy_is_noticed(drafter: NgramDrafter) -> None:
    decoding = Decoding(drafter, TEXT, misleading(60) + TEXT[100:250])
    decoding.run()
    assert len(decoding.steps) < 180 + 150 / 4


@pytest.mark.parametrize("replacement", [[], [2001], [2001, 2002]], ids=["left out", "replaced", "longer"])
def test_a_copy_goes_on_after_a_change(drafter: NgramDrafter, replacement: list[int]) -> None:
    # Every tenth id is another: the ten after it have no id before them that was there before.
    expected = [new for i, token in enumerate(TEXT) for new in (replacement if i % 10 == 9 else [token])]
    decoding = Decoding(drafter, TEXT, expected)
    decoding.run()
    changes = len(TEXT) // 10
    assert len(decoding.steps) < changes * (2.5 + len(replacement))


def test_a_loop_is_drafted_beyond_its_end(drafter: NgramDrafter) -> None:
    request = request_of([9, 8, *[1, 2, 3] * 6])
    assert propose(drafter, [request]) == [([1, 2, 3] * 4)[:11]]


def test_the_last_token_needs_no_draft(drafter: NgramDrafter) -> None:
    for left in range(1, 6):
        (draft,) = propose(drafter, [request_of([1, 2, 3] * 9, max_output=left)])
        assert len(draft) <= left - 1
        assert draft or left == 1


def test_drafts_end_before_a_stop_id(drafter: NgramDrafter) -> None:
    loop = list(range(20)) * 2
    assert propose(drafter, [request_of(loop, stop_ids=[3])]) == [[0, 1, 2]]
    assert propose(drafter, [request_of(loop, stop_ids=[0])]) == [[]]


def test_penalised_requests_get_no_draft(drafter: NgramDrafter) -> None:
    requests = [request_of([1, 2, 3] * 9, presence_penalty=1.0), request_of([1, 2, 3] * 9)]
    assert [len(draft) > 0 for draft in propose(drafter, requests)] == [False, True]


def test_a_request_with_an_id_in_flight_gets_no_draft_but_is_worth_reading(drafter: NgramDrafter) -> None:
    copying, other = request_of(TEXT + TEXT[:20]), request_of(TEXT)
    copying.in_flight = other.in_flight = 1
    assert propose(drafter, [copying]) == [[]]
    assert drafter.worth_reading([copying], 1)
    assert drafter.worth_reading([other, copying], 2)
    assert not drafter.worth_reading([other], 1)


def test_a_long_prompt_is_indexed_over_several_steps(drafter: NgramDrafter) -> None:
    source = random.Random(3)
    prompt = [source.randrange(40_000) for _ in range(65_000)]
    request = request_of(prompt + prompt[:20])
    drafts = [propose(drafter, [request])[0] for _ in range(17)]
    assert drafts[0] == []
    assert drafts[-1] == prompt[20:31]


def test_forgotten_requests_leave_nothing_behind(drafter: NgramDrafter) -> None:
    request = request_of(TEXT)
    propose(drafter, [request])
    drafter.forget(request)
    drafter.forget(request)
    assert not drafter._sequences


def test_a_resumed_output_counts_as_known(drafter: NgramDrafter) -> None:
    request = request_of(TEXT)
    request.output_ids += TEXT[10:40]
    assert propose(drafter, [request]) == [TEXT[40:51]]


def test_a_limit_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="max_draft_tokens"):
        NgramDrafter(SIZES, 0)
