"""Hidden states of prompts: those of the plain forward pass, whatever else the engine is doing."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import Listener, assert_all_free, wait_idle
from small_engine import SETTINGS
from test_broken_numbers import MakeEngine, broken_embedding, broken_norm
from test_engine import lazy_engine, limited, prompt_of

from model.checkpoint.load import load_weights
from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernels_available
from model.layers.forward import last_hidden_states
from model.ops.norm import Norm, normalise, normalise_on_host
from model.params.weights import Weights
from mpt_serve.engine import Delta, Engine, EngineConfig, SamplingParams
from mpt_serve.engine.pooling import PooledStates
from mpt_serve.engine.request import NO_STATES_MESSAGE

__all__ = ["lazy_engine"]  # a fixture

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5
RAW = SamplingParams(max_tokens=0, pooling="none")
MEAN, LAST = replace(RAW, pooling="mean"), replace(RAW, pooling="last")
SAMPLED = SamplingParams(max_tokens=20, seed=3, ignore_eos=True)

_hidden = jax.jit(last_hidden_states, static_argnums=1)


def states_of(weights: Weights, config: MptConfig, ids: list[int]) -> np.ndarray:
    """The hidden states [len(ids), d] by the plain forward pass, in one program for all lengths."""
    padded = np.zeros((1, config.max_seq_len), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(_hidden(weights, config, padded))[0, : len(ids)]


def submit(engine: Engine, prompt: list[int], params: SamplingParams) -> Listener:
    listener = Listener()
    engine.submit(prompt, params, listener)
    return listener


def vectors(delta: Delta) -> np.ndarray:
    assert (delta.token_ids, delta.finish_reason, delta.message) == ((), "length", None)
    assert delta.hidden_states is not None
    return np.frombuffer(delta.hidden_states, "<f4")


def embed(engine: Engine, prompt: list[int], params: SamplingParams) -> np.ndarray:
    return vectors(submit(engine, prompt, params).last())


def test_hidden_states_are_those_of_the_forward_pass(engine: Engine, weights: Weights, config: MptConfig) -> None:
    compilations = engine.stats().compilations
    for length in (1, 4, 5, 33, 64):  # less than a block up to the whole context, in several chunks
        prompt = prompt_of(length, length)
        expected = states_of(weights, config, prompt)
        for _ in range(2):  # the second time the prompt is in the cache
            every = embed(engine, prompt, RAW).reshape(length, -1)
            np.testing.assert_allclose(every, expected, atol=TOLERANCE, rtol=TOLERANCE)
            np.testing.assert_array_equal(embed(engine, prompt, LAST), every[-1])
            mean = every.astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(embed(engine, prompt, MEAN), mean, rtol=1e-6, atol=1e-7)
    assert engine.stats().compilations == compilations
    assert_all_free(engine)


@pytest.mark.parametrize("kernels", ["auto", "xla"])
@pytest.mark.parametrize(
    "name",
    ["mpt-7b", "mosaic-gpt-positions-biases", "heads-24-gqa", "rmsnorm-glu", "biases-alibi", "mpt-30b-head-dim-112"],
)
def test_the_output_head_makes_the_golden_logits_of_them(name: str, kernels: str) -> None:
    """ALiBi, learned positions, grouped heads, another norm, with biases and without: by llm-foundry's own code."""
    config = MptConfig.from_file(GOLDEN / name)
    weights = load_weights(GOLDEN / name, config, dtype=np.float32)
    golden = dict(np.load(GOLDEN / name / "golden.npz"))
    ids = golden["ids"].tolist()
    head = np.asarray(weights.wte if weights.lm_head is None else weights.lm_head)
    settings = EngineConfig(
        max_num_seqs=2, max_num_batched_tokens=16, block_size=4, num_blocks=64, pre_compile=False, kernels=kernels
    )
    with Engine(weights, config, settings) as engine:
        every = embed(engine, ids, RAW).reshape(len(ids), -1)
    np.testing.assert_allclose(every, states_of(weights, config, ids), atol=1e-4)
    assert np.abs(every @ head.T * config.logit_scale - golden["logits"]).max() <= 2e-4


def test_vectors_are_normalised_on_request(engine: Engine) -> None:
    prompt = prompt_of(21, 2)
    for params in (RAW, MEAN, LAST):
        plain = embed(engine, prompt, params).reshape(-1, 32)
        lengths = np.linalg.norm(plain.astype(np.float64), axis=1, keepdims=True)
        assert np.abs(lengths - 1).max() > 0.1
        scaled = embed(engine, prompt, replace(params, normalize=True)).reshape(-1, 32)
        np.testing.assert_allclose(scaled, plain / lengths, rtol=1e-6)


def test_they_do_not_depend_on_the_batch(engine: Engine, weights: Weights, config: MptConfig) -> None:
    prompts = [prompt_of(length, length) for length in (3, 30, 61, 17)]
    alone = [[embed(engine, prompt, params) for params in (RAW, MEAN, LAST)] for prompt in prompts]
    for salt in range(3):  # none in the cache
        streams = [submit(engine, prompt_of(9, seed), replace(SAMPLED, cache_salt=f"{salt}")) for seed in range(3)]
        listeners = [
            [submit(engine, prompt, replace(params, cache_salt=f"{salt}")) for params in (RAW, MEAN, LAST)]
            for prompt in prompts
        ]
        assert all(stream.last().finish_reason == "length" for stream in streams)
        for own, before in zip(listeners, alone, strict=True):
            for listener, expected in zip(own, before, strict=True):
                found = vectors(listener.last())
                np.testing.assert_allclose(found, expected, atol=1e-6)
                if kernels_available():  # no row's numbers depend on another row
                    np.testing.assert_array_equal(found, expected)
    assert_all_free(engine)


def test_the_mean_does_not_depend_on_the_chunks(engine: Engine) -> None:
    prompt = prompt_of(60, 8)
    whole = embed(engine, prompt, MEAN)
    for budget in (5, 7, 16):
        with limited(engine, budget=budget):
            chunked = embed(engine, prompt, replace(MEAN, cache_salt=str(budget)))
        np.testing.assert_allclose(chunked, whole, atol=1e-6)
        if kernels_available():
            np.testing.assert_array_equal(chunked, whole)


def test_they_survive_preemption(engine: Engine, weights: Weights, config: MptConfig) -> None:
    streams = [prompt_of(12, seed) for seed in range(3)]
    prompts = [prompt_of(40, seed) for seed in range(20, 24)]
    with limited(engine, num_blocks=26, budget=6):
        running = [submit(engine, prompt, replace(SAMPLED, max_tokens=40)) for prompt in streams]
        listeners = [
            (prompt, params, submit(engine, prompt, params)) for prompt in prompts for params in (RAW, MEAN, LAST)
        ]
        assert all(listener.ended.wait(60) for listener in running)
        found = [(prompt, params, vectors(listener.last())) for prompt, params, listener in listeners]
        assert engine.stats().preemptions > 0
    for prompt, params, own in found:
        expected = states_of(weights, config, prompt)
        expected = {"none": expected, "mean": expected.mean(axis=0), "last": expected[-1]}[params.pooling or ""]
        np.testing.assert_allclose(own, expected.reshape(-1), atol=TOLERANCE, rtol=TOLERANCE)


def test_only_the_last_token_shares_what_is_cached(lazy_engine: MakeEngine) -> None:
    engine = lazy_engine()
    prompt = prompt_of(45, 5)
    for params, cached in ((LAST, 0), (LAST, 44), (MEAN, 0), (RAW, 0), (LAST, 44)):
        assert submit(engine, prompt, params).last().num_cached_tokens == cached
    wait_idle(engine)
    assert submit(engine, prompt, replace(SAMPLED, max_tokens=1)).last().num_cached_tokens == 44  # theirs is kept, too
    engine.close()


def test_a_cancelled_request_frees_its_blocks(engine: Engine) -> None:
    listeners = []
    for number in range(20):
        listener = Listener()
        engine.submit(prompt_of(50, number), MEAN, listener, f"embedding-{number}")
        engine.cancel(f"embedding-{number}")
        listeners.append(listener)
    assert {listener.last().finish_reason for listener in listeners} <= {"cancelled", "length"}
    assert_all_free(engine)


def test_hidden_states_that_are_no_numbers_are_an_error(lazy_engine: MakeEngine, weights: Weights) -> None:
    engine = lazy_engine(SETTINGS, broken_embedding(weights))
    healthy = [i for i in prompt_of(30, 4) if i != 7]
    broken, good = submit(engine, [*healthy, 7, 5], MEAN), submit(engine, healthy, MEAN)
    assert vectors(good.last()).size == 32
    delta = broken.last()
    assert (delta.finish_reason, delta.message, delta.hidden_states) == ("error", NO_STATES_MESSAGE, None)
    assert wait_idle(engine).without_numbers == 1
    assert_all_free(engine)
    engine.close()
    engine = lazy_engine(SETTINGS, broken_norm(weights, jnp.inf))
    assert submit(engine, healthy, LAST).last().message == NO_STATES_MESSAGE
    engine.close()


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_last_norm_on_the_host_is_that_of_the_model(rms: bool, biased: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(3, 7, (5, 96)).astype(np.float32)
    bias = rng.normal(size=96).astype(np.float32) if biased else None
    norm = Norm(jnp.asarray(rng.normal(size=96), jnp.bfloat16), None if bias is None else jnp.asarray(bias), rms, 1e-5)
    found = normalise_on_host(x, jax.device_get(norm))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, normalise(jnp.asarray(x), norm), atol=1e-5)
    for row in range(5):
        np.testing.assert_array_equal(normalise_on_host(x[row : row + 1], norm)[0], found[row])


def test_a_vector_of_zeros_stays_as_it_is() -> None:
    pooled = PooledStates("last", True, 1)
    assert pooled.result() is None
    pooled.take(np.zeros((1, 3), np.float32))
    assert pooled.result() == bytes(12)
