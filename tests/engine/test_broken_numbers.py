"""A model whose numbers are broken ends requests with an error: no made-up ids, no made-up log probabilities."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from engine_helpers import Listener, assert_all_free, generate, wait_idle
from small_engine import SETTINGS
from test_engine import lazy_engine, prompt_of

from model.params.weights import Weights
from mpt_serve.engine import Engine, SamplingParams
from mpt_serve.engine.request import NO_NUMBERS_MESSAGE

__all__ = ["lazy_engine"]  # a fixture

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0, max_tokens=6)
SAMPLED = SamplingParams(max_tokens=6, seed=3)
POISON = 7  # an id whose embedding is broken


def broken_norm(weights: Weights, value: float) -> Weights:
    norm = weights.norm_f
    return replace(weights, norm_f=replace(norm, weight=norm.weight.at[0].set(value)))


def broken_embedding(weights: Weights) -> Weights:
    """One id's embedding is nan. As the output matrix is the same, its logit is nan for everyone, too."""
    return jax.tree.map(lambda x: x.at[POISON].set(jnp.nan) if x is weights.wte else x, weights)


FILTERED = replace(SAMPLED, top_p=0.5, top_k=5, repetition_penalty=1.3, n=3)
SCORED = replace(GREEDY, logprobs=2, prompt_logprobs=1)


@pytest.mark.parametrize(
    ("kernels", "params"),
    [
        ("auto", GREEDY),
        ("auto", SAMPLED),
        ("auto", FILTERED),
        ("auto", SCORED),
        ("auto", replace(GREEDY, prompt_logprobs=1, max_tokens=0)),
        ("auto", replace(GREEDY, allowed_token_ids=(5, 6), ignore_eos=True)),
        ("xla", SCORED),
    ],
    ids=["greedy", "sampled", "filtered", "scored", "prompt alone", "masked", "xla"],
)
def test_nan_logits_are_an_error(
    lazy_engine: MakeEngine, weights: Weights, kernels: str, params: SamplingParams
) -> None:
    engine = lazy_engine(SETTINGS.replace(kernels=kernels), broken_norm(weights, jnp.nan))
    listener = Listener()
    engine.submit(prompt_of(20), params, listener)
    assert listener.ended.wait(240)  # programs are compiled first
    stats = wait_idle(engine)
    assert len(listener.deltas) == params.n
    for delta in listener.deltas:
        assert (delta.finish_reason, delta.message) == ("error", NO_NUMBERS_MESSAGE)
        assert (delta.token_ids, delta.logprobs, delta.prompt_logprobs) == ((), None, None)
    assert stats.without_numbers == stats.finished["error"] == params.n
    assert stats.error is None  # the engine itself works
    assert_all_free(engine)
    engine.close()


@pytest.mark.parametrize("speculation", ["none", "ngram"])
def test_other_requests_of_the_same_steps_are_not_concerned(
    lazy_engine: MakeEngine, weights: Weights, speculation: str
) -> None:
    healthy = [[i for i in prompt_of(length, length) if i != POISON] for length in (5, 19, 33)]
    poisoned = [*prompt_of(4), POISON, *prompt_of(9)]
    params = replace(GREEDY, max_tokens=12, logprobs=1)
    engine = lazy_engine(SETTINGS.replace(speculation=speculation), broken_embedding(weights))
    alone = [generate(engine, [prompt], params)[0] for prompt in healthy]
    together = generate(engine, [healthy[0], poisoned, healthy[1], poisoned, healthy[2]], params)
    assert [(c.token_ids, c.finish_reason) for c in together[::2]] == [(c.token_ids, c.finish_reason) for c in alone]
    assert [c.finish_reason for c in together] == ["length", "error", "length", "error", "length"]
    assert POISON not in [token for completion in alone for token in completion.token_ids]
    assert wait_idle(engine).without_numbers == 2
    assert_all_free(engine)
    engine.close()


def test_broken_keys_and_values_are_found_by_one_request_at_most(lazy_engine: MakeEngine) -> None:
    """The cache is broken where the weights are not: in a device's memory, for example."""
    engine = lazy_engine()
    prompt = prompt_of(21)
    (good,) = generate(engine, [prompt], GREEDY)
    wait_idle(engine)
    state = engine._runner._state
    state.cache = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.cache)
    (broken,) = generate(engine, [prompt], GREEDY)
    assert broken.finish_reason == "error"
    before = wait_idle(engine).cached_tokens
    (after,) = generate(engine, [prompt], GREEDY)
    assert (after.finish_reason, after.token_ids) == (good.finish_reason, good.token_ids)
    assert wait_idle(engine).cached_tokens == before  # computed again
    (again,) = generate(engine, [prompt], GREEDY)
    assert again.token_ids == good.token_ids
    assert wait_idle(engine).cached_tokens == before + 20
    assert_all_free(engine)
    engine.close()
