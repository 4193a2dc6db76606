"""A whole step by one kernel against the same step kernel by kernel: equal to the last bit on every instruction set."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.kernel_selection import select_kernels
from model.kernels.cpu.attention import paged_attention
from model.kernels.cpu.step import computes_whole_step, whole_step
from model.layers.paged_forward import forward_and_logits
from model.ops.activations import Activation
from model.ops.rope import RopeConfig
from model.params.kv_cache import KvCache, init_kv_cache
from model.params.step_batch import StepBatch
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, init_weights

BLOCK, BLOCKS, WIDTH = 8, 40, 20  # tokens of a block, blocks of the pool, blocks of a sequence

compiled = partial(jax.jit, static_argnums=1, donate_argnums=2)
by_kernels = compiled(partial(forward_and_logits, attention=paged_attention))
at_once = compiled(partial(forward_and_logits, attention=paged_attention, whole_step=whole_step))

configs = st.builds(
    MptConfig,
    d_model=st.sampled_from([40, 64]),
    n_heads=st.just(4),
    n_layers=st.sampled_from([1, 2]),
    vocab_size=st.sampled_from([50, 96]),
    max_seq_len=st.just(160),
    kv_n_heads=st.sampled_from([1, 2, 4]),
    ffn_hidden_size=st.sampled_from([72, 256]),
    ffn_gated=st.booleans(),
    activation=st.sampled_from([Activation(), Activation("silu")]),
    rms_norm=st.booleans(),
    bias=st.booleans(),
    qkv_bias=st.sampled_from([None, True]),
    qk_norm=st.sampled_from([None, "ln", "gn"]),
    qk_rms_norm=st.booleans(),
    clip_qkv=st.sampled_from([None, 0.5]),
    attn_logit_softcap=st.sampled_from([None, 5.0]),
    sliding_window=st.sampled_from([None, 40]),
    alibi=st.booleans(),
    learned_positions=st.booleans(),
    rope=st.sampled_from([None, RopeConfig(theta=50.0)]),
    tied_head=st.booleans(),
    logit_scale=st.sampled_from([1.0, 0.3]),
    final_logit_softcap=st.sampled_from([None, 2.0]),
)


def make_weights(config: MptConfig, dtype: str, quantization: str, source: np.random.Generator) -> Weights:
    """Return random packed weights, norms and biases included."""

    def random(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(source.normal(0, 0.2, x.shape).astype(dtype))

    weights = jax.tree.map(random, jax.eval_shape(lambda: init_weights(config, jax.random.key(0))))
    return pack_weights(weights, config, WeightFormat(quantization, packed=True, group=16))


def make_cache(config: MptConfig, dtype: str, source: np.random.Generator) -> KvCache:
    """Return a cache full of random numbers."""
    cache = init_kv_cache(config, BLOCKS, BLOCK, dtype)
    return jax.tree.map(lambda pool: jnp.asarray(np.abs(source.normal(0, 1, pool.shape)) * 2, pool.dtype), cache)


def make_batch(
    config: MptConfig, rows: list[tuple[int, int]], source: np.random.Generator
) -> tuple[StepBatch, jax.Array]:
    """Return a step of rows (tokens, tokens before them) and the tokens to sample after; two of it are padding."""
    lengths, before = np.array(rows).T
    T, R = lengths.sum() + 2, len(rows) + 1
    tables = np.zeros((R, WIDTH), np.int32)
    tables[:-1] = source.permutation(BLOCKS)[: len(rows) * WIDTH].reshape(len(rows), WIDTH)
    positions, slots = np.zeros(T, np.int32), np.full(T, BLOCKS * BLOCK)
    start = np.cumsum(lengths) - lengths
    for r, (length, first) in enumerate(rows):
        own = first + np.arange(length)
        at = slice(start[r], start[r] + length)
        positions[at], slots[at] = own, tables[r, own // BLOCK] * BLOCK + own % BLOCK
    fields = (np.append(x, 0) for x in (start, lengths, before + lengths))
    tokens = source.integers(0, config.vocab_size, T)
    batch = StepBatch(*(jnp.asarray(x, jnp.int32) for x in (tokens, positions, slots, tables, *fields)), jnp.int32(0))
    return batch, jnp.asarray(start + lengths - 1, jnp.int32)[::-1]


def check_equal(config: MptConfig, formats: tuple[str, str, str], rows: list[tuple[int, int]], number: int) -> None:
    """Check hidden states, logits and caches of one step."""
    dtype, quantization, cache_dtype = formats
    source = np.random.default_rng(number)
    config = replace(config, learned_positions=config.learned_positions and not config.alibi)
    weights = make_weights(config, dtype, quantization, source)
    batch, sampled = make_batch(config, rows, source)
    assert select_kernels(weights, config, cache_dtype).whole_step is whole_step
    expected, found = (
        run(weights, config, make_cache(config, cache_dtype, np.random.default_rng(number)), batch, sampled)
        for run in (by_kernels, at_once)
    )
    assert np.isfinite(np.asarray(expected[1])).all()
    jax.tree.map(_check_bits, found, expected)


def _check_bits(found: jax.Array, expected: jax.Array) -> None:
    bits = {4: np.uint32, 2: np.uint16, 1: np.uint8}[found.dtype.itemsize]
    np.testing.assert_array_equal(np.asarray(found).view(bits), np.asarray(expected).view(bits))


formats = st.tuples(
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["none", "int8", "int4"]),
    st.sampled_from(["float32", "bfloat16", "int8"]),
)
numbers_of_rows = st.sampled_from([[(1, 9)], [(1, 140), (1, 3)], [(1, 30), (13, 40)], [(60, 70)]])
any_step = given(config=configs, formats=formats, rows=numbers_of_rows, number=st.integers(0, 99))


@seed(0)  # the same steps for every instruction set, so that each compiles once
@settings(max_examples=6, database=None)
@any_step
def test_a_step_at_once_is_the_step_kernel_by_kernel(library, config, formats, rows, number):
    check_equal(config, formats, rows, number)


@pytest.mark.exhaustive
@settings(max_examples=100)
@any_step
def test_many_steps_at_once_are_steps_kernel_by_kernel(library, config, formats, rows, number):
    check_equal(config, formats, rows, number)


BASE = MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=40, alibi=False)


@pytest.mark.parametrize(
    "addition",
    [{"temperature": (8.0, 0.1)}, {"activation": Activation("mish")}],
    ids=["temperature", "activation"],
)
def test_what_xla_computes_between_kernels_is_computed_kernel_by_kernel(addition):
    config = replace(BASE, **addition)
    weights = make_weights(config, "float32", "none", np.random.default_rng(0))
    assert not computes_whole_step(weights, config)


def test_blocks_that_differ_are_computed_kernel_by_kernel():
    weights, other = (make_weights(BASE, dtype, "none", np.random.default_rng(0)) for dtype in ("float32", "bfloat16"))
    assert computes_whole_step(weights, BASE)
    assert not computes_whole_step(replace(weights, blocks=(weights.blocks[0], other.blocks[1])), BASE)
