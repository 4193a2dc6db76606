"""What requests may ask of the sampling, each against the full forward pass without a cache."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_helpers import Listener, assert_all_free, generate, held_after, wait_idle
from reference import check_generated, log_softmax
from small_engine import SETTINGS, VOCAB_LIMIT
from test_engine import lazy_engine, limited, prompt_of

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine import Delta, Engine, RequestError, SamplingParams, TokenLogprobs
from mpt_serve.engine.token_masks import mask_below, mask_words

__all__ = ["lazy_engine"]  # a fixture

GREEDY = SamplingParams(temperature=0, max_tokens=14)
SAMPLED = SamplingParams(max_tokens=14, seed=11)


@pytest.mark.parametrize("base", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -1.5},
        {"logit_bias": {3: 4.0, 7: 2.5, 80: -3.0}},
        {"allowed_token_ids": (5, 9, 33, 34, 71)},
        {"bad_words": ((24,), (28, 54), (10, 10, 10), *((i,) for i in range(40, 90, 3)))},
        {"min_tokens": 9, "stop_token_ids": tuple(range(60))},
        {
            "repetition_penalty": 1.2,
            "presence_penalty": -0.5,
            "frequency_penalty": 0.4,
            "logit_bias": {1: 3.0},
            "allowed_token_ids": tuple(range(0, 90, 2)),
            "bad_words": ((4,), (6, 8)),
        },
    ],
    ids=lambda changes: "+".join(changes),
)
def test_each_parameter_changes_the_output_as_defined(
    engine: Engine, weights: Weights, config: MptConfig, base: SamplingParams, changes: dict[str, Any]
) -> None:
    params = replace(base, **changes)
    prompts = [prompt_of(length, length) for length in (4, 17, 40)]
    completions = generate(engine, prompts, params)
    plain = generate(engine, prompts, base)
    for prompt, completion in zip(prompts, completions, strict=True):
        check_generated(weights, config, VOCAB_LIMIT, prompt, params, completion.token_ids)
    assert [c.token_ids for c in completions] != [c.token_ids for c in plain]
    assert_all_free(engine)


def test_bad_words_never_come(engine: Engine) -> None:
    (free,) = generate(engine, [prompt_of(5)], GREEDY)
    ids = free.token_ids
    forbidden = tuple(ids[3:5]), (ids[7],)
    (completion,) = generate(engine, [prompt_of(5)], replace(GREEDY, bad_words=forbidden))
    pairs = [tuple(completion.token_ids[i : i + 2]) for i in range(14)]
    assert forbidden[0] not in pairs
    assert ids[7] not in completion.token_ids


def test_lists_that_leave_nothing_give_way(engine: Engine) -> None:
    params = replace(GREEDY, allowed_token_ids=(5, 6), bad_words=((5,), (6,)), max_tokens=4)
    (completion,) = generate(engine, [prompt_of(5)], params)
    assert set(completion.token_ids) <= {5, 6}


@pytest.mark.parametrize("base", [GREEDY, SAMPLED, replace(SAMPLED, repetition_penalty=1.7, logit_bias={3: 4.0})])
def test_lists_that_forbid_the_whole_vocabulary_change_nothing(engine: Engine, base: SamplingParams) -> None:
    everything = tuple((token,) for token in range(VOCAB_LIMIT))
    asked = [base, replace(base, bad_words=everything)]
    asked.append(replace(base, stop_token_ids=tuple(range(VOCAB_LIMIT)), min_tokens=14))
    free, forbidden, stopping = generate(engine, [prompt_of(5)] * 3, asked)
    assert forbidden.token_ids == free.token_ids
    assert stopping.token_ids == free.token_ids[:1]  # a stop id, as there is nothing else


def test_a_mask_has_a_bit_for_each_id_below_the_limit() -> None:
    for limit, size in ((90, 96), (1, 33), (64, 65), (32, 32)):
        mask = mask_below(limit, size)
        assert (mask.dtype, len(mask)) == (np.uint32, mask_words(size))
        assert [i for i in range(32 * len(mask)) if mask[i // 32] >> (i % 32) & 1] == list(range(limit))


# Choices


def choices_of(listener: Listener, indices: Sequence[int]) -> list[list[int]]:
    return [[t for d in listener.deltas if d.index == index for t in d.token_ids] for index in indices]


def submit(engine: Engine, prompt: Sequence[int], params: SamplingParams, **more: Any) -> Listener:
    listener = Listener(lambda delta: None)
    listener.ended.clear()
    left = set(range(params.choice_index, params.choice_index + params.n))

    def on_delta(delta: Delta) -> None:
        listener.deltas.append(delta)
        if delta.finish_reason is not None:
            left.remove(delta.index)
            if not left:
                listener.ended.set()

    engine.submit(prompt, params, on_delta, **more)
    return listener


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 17, 30])
def test_choices_are_what_each_is_alone_and_read_the_prompt_once(engine: Engine, length: int) -> None:
    prompt, params = prompt_of(length, 100 + length), replace(SAMPLED, n=6, max_tokens=9)
    before = engine.stats()
    listener = submit(engine, prompt, params)
    assert listener.ended.wait(60)
    for index, ids in enumerate(choices_of(listener, range(6))):
        (alone,) = generate(engine, [prompt], replace(SAMPLED, choice_index=index, max_tokens=9))
        assert tuple(ids) == alone.token_ids
    assert engine.stats().prompt_tokens - before.prompt_tokens == 7 * length
    cached = {delta.index: delta.num_cached_tokens for delta in listener.deltas}
    whole_blocks = (length - 1) // 4 * 4
    assert [cached[index] for index in range(4)] == [0, *[length - 1] * 3]  # four run at once
    assert all(cached[index] in (whole_blocks, length - 1) for index in (4, 5))  # when the first may have ended
    assert_all_free(engine)


def test_prompts_count_once_for_all_their_choices(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()
    for cached in (0, 28):  # all but the block with the last token
        before = engine.stats()
        generate(engine, [prompt_of(32, 9)], replace(SAMPLED, n=6, choice_index=2))
        after = wait_idle(engine)
        assert after.prompt_tokens - before.prompt_tokens == 32
        assert after.cached_tokens - before.cached_tokens == cached


def test_choices_hold_the_prompt_once(engine: Engine) -> None:
    prompt, params = prompt_of(41, 5), replace(SAMPLED, n=4, max_tokens=20, ignore_eos=True)
    preemptions = engine.stats().preemptions
    with limited(engine, num_blocks=10 + 4 * 6 + 4):  # four times the prompt alone would be 44 blocks
        listener = submit(engine, prompt, params)
        assert listener.ended.wait(60)
    assert engine.stats().preemptions == preemptions
    for index, ids in enumerate(choices_of(listener, range(4))):
        (alone,) = generate(engine, [prompt], replace(params, n=1, choice_index=index))
        assert tuple(ids) == alone.token_ids


def test_one_choice_can_be_cancelled_with_all_others(engine: Engine) -> None:
    params = replace(SAMPLED, n=9, max_tokens=40, ignore_eos=True)
    with held_after(engine, turns=10):
        listener = submit(engine, prompt_of(20), params, request_id="many")
        engine.cancel("many")
    assert listener.ended.wait(60)
    assert {d.finish_reason for d in listener.deltas if d.finish_reason} == {"cancelled"}
    assert_all_free(engine)


# Log probabilities


def check_logprobs(table: np.ndarray, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], num_top: int) -> None:
    """Compare with a table [len(ids) or more, V] of log probabilities."""
    assert len(ids) == len(logprobs)
    for row, token, entry in zip(table, ids, logprobs, strict=False):
        assert entry.logprob == pytest.approx(row[token], abs=1e-4)
        assert len(entry.top) == num_top
        best = np.sort(row[:VOCAB_LIMIT])[::-1][:num_top]
        np.testing.assert_allclose([value for _, value in entry.top], best, atol=1e-4)
        np.testing.assert_allclose([row[i] for i, _ in entry.top], best, atol=1e-4)
        assert 1 + (row > row[token] + 1e-4).sum() <= entry.rank <= 1 + (row > row[token] - 1e-4).sum()
        assert all(value == entry.logprob for i, value in entry.top if i == token)


@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize("base", [GREEDY, replace(SAMPLED, temperature=0.6, top_k=30, presence_penalty=1.0)])
def test_log_probabilities_are_the_models_own(
    engine: Engine, weights: Weights, config: MptConfig, base: SamplingParams, num_top: int
) -> None:
    prompt = prompt_of(37, 3)  # more than one chunk
    params = replace(base, logprobs=num_top, prompt_logprobs=num_top)
    for _ in range(2):  # the second time the prompt is in the cache, and repeats what was reported before
        listener = submit(engine, prompt, params)
        assert listener.ended.wait(60)
        table = log_softmax(weights, config, [*prompt, *listener.token_ids])
        logprobs = [entry for delta in listener.deltas for entry in delta.logprobs or ()]
        check_logprobs(table[len(prompt) - 1 :], listener.token_ids, logprobs, num_top)
        (prompt_logprobs,) = [d.prompt_logprobs for d in listener.deltas if d.prompt_logprobs is not None]
        assert prompt_logprobs[0] is None
        check_logprobs(table, prompt[1:], prompt_logprobs[1:], num_top)
    assert_all_free(engine)


def test_log_probabilities_of_named_ids_are_those_that_lists_have(
    engine: Engine, weights: Weights, config: MptConfig
) -> None:
    prompt = prompt_of(5, 3) * 4  # repeats itself, so that drafts are verified
    named = tuple(range(89, 49, -1))  # more than one call scores
    compilations = engine.stats().compilations
    for base in (replace(GREEDY, max_tokens=24), replace(SAMPLED, n=2, max_tokens=8)):
        by_name = submit(engine, prompt, replace(base, logprob_token_ids=named))
        by_rank = submit(engine, prompt, replace(base, logprobs=20))
        assert by_name.ended.wait(60)
        assert by_rank.ended.wait(60)
        for index in range(base.n):
            ids, lists = choices_of(by_rank, [index])[0], logprobs_of(by_rank, index)
            assert choices_of(by_name, [index]) == [ids]
            table = log_softmax(weights, config, [*prompt, *ids])[len(prompt) - 1 :]
            for row, ranked, own in zip(table, lists, logprobs_of(by_name, index), strict=False):
                assert (own.logprob, own.rank) == (ranked.logprob, ranked.rank)
                assert tuple(i for i, _ in own.top) == named
                np.testing.assert_allclose([value for _, value in own.top], row[list(named)], atol=1e-4)
                top = dict(ranked.top)
                assert all(value == top.get(i, value) for i, value in own.top)  # to the last bit
    assert engine.stats().compilations == compilations
    assert_all_free(engine)


def logprobs_of(listener: Listener, index: int) -> list[TokenLogprobs]:
    return [entry for d in listener.deltas if d.index == index for entry in d.logprobs or ()]


def test_a_request_without_output_reports_its_prompts_log_probabilities(
    engine: Engine, weights: Weights, config: MptConfig
) -> None:
    for length in (1, 4, 5, 33, 64):  # up to the whole context
        prompt = prompt_of(length, length)
        listener = submit(engine, prompt, SamplingParams(max_tokens=0, prompt_logprobs=2))
        assert listener.ended.wait(60)
        (delta,) = listener.deltas
        assert (delta.token_ids, delta.finish_reason) == ((), "length")
        assert delta.prompt_logprobs is not None
        check_logprobs(log_softmax(weights, config, prompt), prompt[1:], delta.prompt_logprobs[1:], 2)
    assert_all_free(engine)


def test_log_probabilities_from_a_position_on_share_what_comes_before(
    lazy_engine,  # type: ignore[no-untyped-def]
    weights: Weights,
    config: MptConfig,
) -> None:
    engine = lazy_engine()
    prompt = prompt_of(45, 5)
    table = log_softmax(weights, config, prompt)
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    for start, cached in ((0, 0), (1, 0), (40, 36), (44, 40), (45, 44), (99, 44)):
        listener = submit(engine, prompt, replace(params, prompt_logprobs_start=start))
        assert listener.ended.wait(60)
        (delta,) = listener.deltas
        assert delta.num_cached_tokens == cached
        first = max(1, min(start, len(prompt)))
        assert delta.prompt_logprobs is not None
        assert delta.prompt_logprobs[:first] == (None,) * first
        check_logprobs(table[first - 1 :], prompt[first:], delta.prompt_logprobs[first:], 2)


def test_prompt_log_probabilities_survive_preemption(engine: Engine, weights: Weights, config: MptConfig) -> None:
    params = replace(SAMPLED, prompt_logprobs=1, logprobs=1, max_tokens=20, ignore_eos=True)
    with limited(engine, num_blocks=18):
        prompts = [prompt_of(24, seed) for seed in range(4)]
        listeners = [submit(engine, prompt, params) for prompt in prompts]
        assert all(listener.ended.wait(60) for listener in listeners)
        assert engine.stats().preemptions > 0
    for prompt, listener in zip(prompts, listeners, strict=True):
        table = log_softmax(weights, config, [*prompt, *listener.token_ids])
        (logprobs,) = [d.prompt_logprobs for d in listener.deltas if d.prompt_logprobs is not None]
        check_logprobs(table, prompt[1:], logprobs[1:], 1)
        check_logprobs(
            table[len(prompt) - 1 :], listener.token_ids, [e for d in listener.deltas for e in d.logprobs or ()], 1
        )


# The prefix cache


def test_a_prompt_that_was_there_before_is_not_computed_again(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()
    prompt = prompt_of(50, 9)
    first = submit(engine, prompt, replace(GREEDY, max_tokens=12))
    assert first.ended.wait(60)
    second = submit(engine, prompt, replace(GREEDY, max_tokens=12))
    assert second.ended.wait(60)
    assert first.deltas[-1].num_cached_tokens == 0
    assert second.deltas[-1].num_cached_tokens == 48  # all but the block with the last token
    assert second.token_ids == first.token_ids
    # The next turn of the conversation: the output's keys and values are there, but for the last token's.
    history = [*prompt, *first.token_ids]
    third = submit(engine, [*history, 1], replace(GREEDY, max_tokens=1))
    assert third.ended.wait(60)
    assert third.deltas[-1].num_cached_tokens == (len(history) - 1) // 4 * 4
    assert engine.stats().cached_tokens == 48 + (len(history) - 1) // 4 * 4
    assert_all_free(engine)


def test_salts_keep_prompts_apart(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()
    prompt = prompt_of(50, 9)
    for salt, cached in (("a", 0), ("b", 0), ("a", 48), ("", 0), ("", 48)):
        listener = submit(engine, prompt, replace(GREEDY, cache_salt=salt))
        assert listener.ended.wait(60)
        assert listener.deltas[-1].num_cached_tokens == cached


def test_the_cache_can_be_switched_off(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine(SETTINGS.replace(prefix_caching=False))
    for _ in range(2):
        listener = submit(engine, prompt_of(50, 9), GREEDY)
        assert listener.ended.wait(60)
        assert listener.deltas[-1].num_cached_tokens == 0


# Going on elsewhere


@pytest.mark.parametrize(
    "params",
    [
        replace(SAMPLED, frequency_penalty=0.8, repetition_penalty=1.3, logit_bias={4: 1.0}, choice_index=3),
        replace(SAMPLED, min_tokens=9, stop_token_ids=tuple(range(50)), bad_words=((1, 2), (3,)), logprobs=2),
        replace(GREEDY, presence_penalty=1.0),
    ],
    ids=["penalties", "lists", "greedy"],
)
def test_a_request_goes_on_elsewhere_as_it_would_have(engine: Engine, params: SamplingParams) -> None:
    prompt = prompt_of(21, 8)
    whole = submit(engine, prompt, params)
    assert whole.ended.wait(60)
    for known in (1, 5, len(whole.token_ids) - 1):
        rest = submit(engine, prompt, params, generated=whole.token_ids[:known])
        assert rest.ended.wait(60)
        assert rest.token_ids == whole.token_ids[known:]
        assert rest.deltas[-1].finish_reason == whole.deltas[-1].finish_reason
        logprobs = [entry for delta in whole.deltas for entry in delta.logprobs or ()]
        assert [entry for delta in rest.deltas for entry in delta.logprobs or ()] == logprobs[known:]
    with pytest.raises(RequestError, match="unfinished output"):
        engine.submit(prompt, params, Listener(), generated=whole.token_ids)
