"""Embeddings in prompts: those of the model's own table give what its ids give, by the CPU kernels to the last bit."""

from collections.abc import Iterator
from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from engine_helpers import Listener, assert_all_free
from small_engine import SETTINGS, VOCAB_LIMIT
from test_engine import prompt_of

from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernels_available
from model.params.weights import Weights
from mpt_serve.engine import Engine, PromptEmbeds, RequestError, SamplingParams
from mpt_serve.llm import LLM

EMBEDS = SETTINGS.model_copy(update={"prompt_embeds": True, "pre_compile": False, "num_blocks": 28})
GREEDY = SamplingParams(max_tokens=12, temperature=0, logprobs=3, ignore_eos=True)


@pytest.fixture(scope="module")
def taker(weights: Weights, config: MptConfig) -> Iterator[Engine]:
    """An engine that takes embeddings."""
    with Engine(weights, config, EMBEDS, VOCAB_LIMIT, eos_token_ids=()) as engine:
        yield engine


@pytest.fixture(scope="module")
def table(weights: Weights) -> np.ndarray:
    return np.asarray(weights.wte, np.float32)


def outputs(listener: Listener, index: int = 0) -> tuple[list[int], list[object]]:
    """The ids and log probabilities of one choice of a request that has ended; by XLA, the ids alone."""
    own = [delta for delta in listener.deltas if delta.index == index]
    logprobs = [p for d in own for p in d.logprobs or ()]
    return [i for d in own for i in d.token_ids], logprobs if kernels_available() else []


def run(engine: Engine, ids: list[int], params: SamplingParams, embeds: PromptEmbeds | None = None) -> Listener:
    listener = Listener()
    engine.submit(ids, params, listener, embeds=embeds)
    assert listener.last().message is None
    return listener


@pytest.mark.parametrize("length", [1, 21])  # up to several chunks of a prompt
def test_rows_of_the_table_give_what_the_ids_give(taker: Engine, table: np.ndarray, length: int) -> None:
    ids = prompt_of(length, length)
    expected = outputs(run(taker, ids, GREEDY))
    for _ in range(2):  # the second time, the prompt is in the cache
        last = run(taker, [0] * length, GREEDY, PromptEmbeds.of(table[ids]))
        assert outputs(last) == expected
    assert_all_free(taker)


def test_embeddings_stand_between_ids(taker: Engine, table: np.ndarray) -> None:
    ids = prompt_of(21, 3)
    expected = outputs(run(taker, ids, replace(GREEDY, cache_salt="own")))
    mixed = [*ids[:6], *[0] * 9, *ids[15:]]
    assert outputs(run(taker, mixed, GREEDY, PromptEmbeds.of(table[ids[6:15]], start=6))) == expected


def test_the_prefix_cache_tells_embeddings_apart(taker: Engine, table: np.ndarray) -> None:
    """They share blocks with equal ones: not with others, nor with the ids that stand for nothing."""
    first, second = prompt_of(16, 5), prompt_of(16, 6)
    zeros, own = [0] * 16, replace(GREEDY, cache_salt="apart")
    run(taker, zeros, own)
    for ids, cached in ((first, 0), (first, 12), (second, 0), ([*second[:8], *first[8:]], 8)):
        listener = run(taker, zeros, own, PromptEmbeds.of(table[ids]))
        assert listener.deltas[-1].num_cached_tokens == cached
        assert outputs(listener) == outputs(run(taker, ids, replace(GREEDY, cache_salt=str(ids))))
    for start in (3, 2):  # the same row elsewhere is another prompt
        listener = run(taker, zeros, own, PromptEmbeds.of(table[first][:1], start=start))
        assert listener.deltas[-1].num_cached_tokens == 0


def test_choices_share_a_prompt_of_embeddings(taker: Engine, table: np.ndarray) -> None:
    ids = prompt_of(18, 7)
    params = replace(GREEDY, temperature=1.0, seed=5, n=3)
    by_ids, by_rows = Listener(), Listener()
    taker.submit(ids, params, by_ids)
    taker.submit([0] * 18, params, by_rows, embeds=PromptEmbeds.of(table[ids]))
    assert_all_free(taker)
    assert [outputs(by_rows, i) for i in range(3)] == [outputs(by_ids, i) for i in range(3)]


def test_a_request_continues_after_ids_of_another_engine(taker: Engine, table: np.ndarray) -> None:
    ids = prompt_of(10, 8)
    embeds = PromptEmbeds.of(table[ids])
    whole, _ = outputs(run(taker, [0] * 10, GREEDY, embeds))
    listener = Listener()
    taker.submit([0] * 10, GREEDY, listener, generated=whole[:5], embeds=embeds)
    listener.last()
    assert listener.token_ids == whole[5:]


def test_penalties_count_no_id_for_an_embedding(taker: Engine, table: np.ndarray) -> None:
    """The id 0 stands in the prompt, but the model has not read it."""
    params = SamplingParams(max_tokens=1, temperature=0, repetition_penalty=10, logit_bias={0: 40.0})
    embeds = PromptEmbeds.of(table[prompt_of(6, 9)])
    assert run(taker, [0] * 6, params, embeds).token_ids == [0]


@pytest.mark.exhaustive
def test_preempted_requests_read_their_embeddings_again(taker: Engine, table: np.ndarray) -> None:
    prompts = [prompt_of(12, seed) for seed in range(4)]
    params = replace(GREEDY, max_tokens=20)
    before = taker.stats().preemptions
    expected = [outputs(run(taker, ids, replace(params, cache_salt=str(ids)))) for ids in prompts]
    listeners = [Listener() for _ in prompts]
    for ids, listener in zip(prompts, listeners, strict=True):
        taker.submit([0] * 12, params, listener, embeds=PromptEmbeds.of(table[ids]))
    for listener in listeners:
        listener.last()
    assert taker.stats().preemptions > before
    assert [outputs(listener) for listener in listeners] == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_smaller_numbers_are_taken_as_they_are(dtype: type) -> None:
    rows = np.linspace(-2, 2, 24, dtype=np.float32).astype(dtype).reshape(1, 3, 8)
    embeds = PromptEmbeds.of(jnp.asarray(rows), start=2)
    np.testing.assert_array_equal(embeds.rows, rows[0].astype(np.float32))
    assert embeds.positions.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 3), np.float64), "must be float32, float16 or bfloat16, not float64"),
        (np.zeros((2, 3), np.int32), "not int32"),
        (np.zeros(3, np.float32), r"must have the shape \(tokens, hidden size\), both at least 1, not \(3,\)"),
        (np.zeros((2, 2, 3), np.float32), "must have the shape"),
        (np.zeros((0, 3), np.float32), "must have the shape"),
        (np.full((2, 3), np.nan, np.float32), "must be finite numbers"),
        (np.full((2, 3), np.inf, np.float16), "must be finite numbers"),
    ],
)
def test_wrong_arrays_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PromptEmbeds.of(rows)


def test_what_does_not_fit_the_model_or_the_request_is_refused(taker: Engine, table: np.ndarray) -> None:
    own = PromptEmbeds.of(table[:4])
    too_wide = PromptEmbeds.of(np.ones((4, table.shape[1] + 1), np.float32))
    for ids, embeds, params, message in (
        ([0] * 4, too_wide, GREEDY, f"must have {table.shape[1]} numbers for each token"),
        ([0] * 3, own, GREEDY, "must stand at positions of the prompt"),
        ([0] * 4, own, replace(GREEDY, prompt_logprobs=0), "prompt_logprobs must be null"),
    ):
        with pytest.raises(RequestError, match=message):
            taker.check(ids, params, embeds=embeds)


def test_an_engine_takes_none_unless_its_settings_say_so(weights: Weights, config: MptConfig) -> None:
    settings = SETTINGS.model_copy(update={"pre_compile": False})
    embeds = PromptEmbeds.of(np.ones((1, config.d_model), np.float32))
    refused = pytest.raises(RequestError, match="set prompt_embeds in its EngineConfig to true")
    with Engine(weights, config, settings) as engine, refused:
        engine.submit([0], GREEDY, lambda delta: None, embeds=embeds)


def test_the_library_takes_them_among_other_prompts(taker: Engine, table: np.ndarray) -> None:
    ids = prompt_of(9, 11)
    llm = LLM(taker)
    by_rows, by_ids = llm.generate([PromptEmbeds.of(table[ids]), ids], GREEDY)
    assert by_rows.token_ids == by_ids.token_ids
    assert llm.generate(PromptEmbeds.of(table[ids]), GREEDY)[0].token_ids == by_ids.token_ids
    rows, states = llm.embed([PromptEmbeds.of(table[ids]), ids])
    np.testing.assert_allclose(rows.values, states.values, rtol=0, atol=0 if kernels_available() else 1e-5)
