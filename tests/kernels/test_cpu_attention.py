"""The native attention over the paged cache against `layers.attention`, on every instruction set of this machine."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from model.config.mpt_config import MptConfig
from model.kernels.cpu.attention import paged_attention as cpu_attention
from model.layers.attention import paged_attention
from model.layers.paged_forward import write_then, xla_attention
from model.params.alibi_horizon import length_bound
from model.params.kv_cache import LayerCache
from model.params.qkv import Qkv
from model.params.step_batch import StepBatch


def compiled(attention):
    return jax.jit(attention, static_argnums=3, donate_argnums=1)


reference = compiled(xla_attention)
native = compiled(cpu_attention)
reference_of_all = compiled(write_then(partial(paged_attention, alibi_horizon=False)))
native_of_all = compiled(partial(cpu_attention, alibi_horizon=False))


@dataclass(frozen=True)
class Case:
    """Rows as (tokens in this step, tokens before it); decode rows first."""

    rows: tuple[tuple[int, int], ...]
    head_dim: int = 32
    kv_heads: int = 2
    group: int = 1
    block: int = 16
    dtype: str = "float32"
    alibi: bool = True
    softcap: float | None = None
    window: int | None = None
    bias_max: float = 8.0
    spread: float = 1.5  # of queries and keys

    @property
    def config(self) -> MptConfig:
        heads = self.kv_heads * self.group
        return MptConfig(
            d_model=heads * self.head_dim,
            n_heads=heads,
            kv_n_heads=self.kv_heads,
            n_layers=1,
            vocab_size=8,
            alibi=self.alibi,
            alibi_bias_max=self.bias_max,
            attn_logit_softcap=self.softcap,
            sliding_window=self.window,
        )


CASES = [
    Case(rows=((1, 0), (1, 40), (1, 16), (5, 0), (33, 50))),
    Case(rows=((1, 200), (70, 100)), head_dim=64, dtype="bfloat16", block=32),
    Case(rows=((1, 90), (40, 9), (3, 130)), head_dim=80, kv_heads=1, group=5, block=8, window=30),
    Case(rows=((1, 300), (1, 5), (9, 0)), head_dim=128, group=2, dtype="bfloat16", softcap=8.0),
    Case(rows=((1, 77), (17, 20)), head_dim=37, kv_heads=3, alibi=False, block=24),
    Case(rows=((150, 0),), head_dim=112, kv_heads=1, group=8, block=64, window=0),
    Case(rows=((1, 60), (20, 60)), head_dim=20, kv_heads=1, group=40, block=1, softcap=30.0, window=41),
    Case(rows=((1, 170), (1, 5), (40, 100)), head_dim=64, dtype="int8", group=2, block=32),
    Case(rows=((1, 70), (9, 9), (70, 0)), head_dim=37, dtype="int8", kv_heads=3, block=7, alibi=False, softcap=9.0),
]
# Sequences with keys far beyond the ALiBi horizon of their heads.
FAR = [
    Case(rows=((1, 1500), (1, 700), (40, 1000)), head_dim=16, kv_heads=4, block=32, bias_max=4, spread=1.0),
    Case(rows=((1, 1100), (70, 580)), head_dim=24, group=2, block=24, dtype="bfloat16", bias_max=2),
    Case(rows=((1, 900), (5, 1000)), head_dim=32, group=4, block=256, dtype="int8", bias_max=3, softcap=6.0),
    Case(rows=((1, 1023), (130, 900)), head_dim=40, kv_heads=1, group=12, block=16, window=700, bias_max=6),
]


@dataclass(frozen=True)
class Step:
    """Arguments of one call, on the host. Whatever no row owns is not a number."""

    q: np.ndarray  # [T, H, hd]
    k: np.ndarray  # [T, Hkv, hd]
    v: np.ndarray
    k_pool: np.ndarray  # [N, Hkv, block, hd]
    v_pool: np.ndarray
    slots: np.ndarray
    block_tables: np.ndarray
    query_start: np.ndarray
    query_len: np.ndarray
    context_len: np.ndarray
    num_decode: int

    def batch(self) -> StepBatch:
        rows = (self.slots, self.block_tables, self.query_start, self.query_len, self.context_len)
        tokens = jnp.zeros(len(self.slots), jnp.int32)
        return StepBatch(tokens, tokens, *(jnp.asarray(a, jnp.int32) for a in rows), jnp.int32(self.num_decode))

    def cache(self, case: Case) -> LayerCache:
        (keys, key_scales), (values, value_scales) = (_stored(pool, case.dtype) for pool in (self.k_pool, self.v_pool))
        lengths = length_bound(keys.astype(jnp.float32) if key_scales is None else keys * key_scales[..., None])
        return LayerCache(keys, values, lengths if case.alibi else None, key_scales, value_scales)


def _stored(pool: np.ndarray, dtype: str) -> tuple[jax.Array, jax.Array | None]:
    if dtype != "int8":
        return jnp.asarray(pool, dtype), None
    scales = np.abs(pool).max(axis=-1) / np.float32(127)
    whole = np.nan_to_num(np.round(pool / scales[..., None]))
    return jnp.asarray(whole, jnp.int8), jnp.asarray(scales)


def make_step(case: Case, seed: int = 0) -> Step:
    """Return a step whose queries, keys and values depend on neither block size nor dtype."""
    source = np.random.default_rng(seed)
    Hkv, H, hd, block = case.kv_heads, case.kv_heads * case.group, case.head_dim, case.block
    lengths = np.array([length for length, _ in case.rows])
    contexts = np.array([length + before for length, before in case.rows])
    needed = -(-contexts // block)
    T, R, N = lengths.sum() + 3, len(lengths) + 2, needed.sum() + 2  # padding tokens, padding rows, foreign blocks
    q, k, v = (case.spread * source.standard_normal((T, heads, hd)).astype(np.float32) for heads in (H, Hkv, Hkv))
    earlier = [source.standard_normal((2, before, Hkv, hd)).astype(np.float32) for _, before in case.rows]
    blocks = source.permutation(N)
    tables, slots = np.zeros((R, needed.max() + 1), np.int32), np.full(T, N * block)
    pools = np.full((2, N, Hkv, block, hd), np.nan, np.float32)
    at = 0
    for r, (length, before) in enumerate(case.rows):
        tables[r, : needed[r]], blocks = blocks[: needed[r]], blocks[needed[r] :]
        positions = np.arange(before + length)
        own = tables[r, positions // block] * block + positions % block
        slots[at : at + length] = own[before:]
        for pool, held in zip(pools, earlier[r], strict=True):
            pool[own[:before] // block, :, own[:before] % block] = held
        at += length
    rows = np.zeros((3, R), np.int64)
    rows[:, : len(lengths)] = np.cumsum(lengths) - lengths, lengths, contexts
    decode = next((r for r, (length, _) in enumerate(case.rows) if length > 1), len(lengths))
    return Step(q, k, v, *pools, slots, tables, *rows, decode)


def run(attention, step: Step, case: Case, cache: LayerCache | None = None) -> tuple[np.ndarray, LayerCache]:
    parts = [jnp.asarray(a) for a in (step.q, step.k, step.v)]
    fused = jnp.concatenate([a.reshape(len(a), -1) for a in parts], axis=1) if case.alibi else None  # both ways in
    y, cache = attention(Qkv(*parts, fused), cache or step.cache(case), step.batch(), case.config)
    return np.asarray(y), cache


@pytest.mark.parametrize("case", CASES + FAR, ids=range(len(CASES + FAR)))
def test_attention_is_that_of_the_definition(library, case):
    check_against_definition(case)


def check_against_definition(case: Case) -> None:
    """Check with every key, and without those beyond the horizon."""
    step = make_step(case)
    expected, cache = run(reference_of_all, step, case)
    used = step.query_len.sum()
    for attention in (native_of_all, native, reference) if case.alibi else (native,):
        y, own_cache = run(attention, step, case)
        np.testing.assert_allclose(y[:used], expected[:used], rtol=2e-5, atol=2e-5)
        if attention is not reference:
            assert not y[used:].any()
            check_caches_equal(own_cache, cache)


def check_caches_equal(found: LayerCache, expected: LayerCache) -> None:
    """Check that keys, values, norms and scales are where they belong."""
    for name in ("keys", "values", "key_scales", "value_scales"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    if expected.key_norms is not None:
        np.testing.assert_allclose(found.key_norms, expected.key_norms, rtol=1e-5)


any_shape = given(
    decodes=st.lists(st.tuples(st.just(1), st.integers(0, 400)), max_size=2),
    chunks=st.lists(st.tuples(st.integers(2, 70), st.integers(0, 300)), min_size=1, max_size=2),
    head_dim=st.integers(1, 130),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    block=st.sampled_from([1, 7, 16, 32, 128]),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
    alibi=st.booleans(),
    softcap=st.sampled_from([None, 10.0]),
    window=st.none() | st.integers(0, 100),
    bias_max=st.floats(1, 16),
    spread=st.just(0.0) | st.floats(0.001, 2),  # subnormal keys become zero in the kernels and stay in XLA
)


@seed(0)  # the same shapes for every instruction set, so that each compiles once
@settings(max_examples=6, database=None)
@any_shape
def test_attention_of_any_shape_is_that_of_the_definition(library, decodes, chunks, **shape):
    check_against_definition(Case(rows=(*decodes, *chunks), **shape))


@pytest.mark.exhaustive
@settings(max_examples=50)
@any_shape
def test_attention_of_many_shapes_is_that_of_the_definition(library, decodes, chunks, **shape):
    check_against_definition(Case(rows=(*decodes, *chunks), **shape))


@pytest.mark.parametrize("case", CASES + FAR, ids=range(len(CASES + FAR)))
def test_a_query_depends_on_its_own_sequence_alone(library, case):
    """To the last bit: alone or beside others, as a decode row or in chunks of any size, wherever its blocks lie."""
    step = make_step(case)
    together, _ = run(native, step, case)
    source = np.random.default_rng(1)
    for r in range(len(case.rows)):
        start, length, context = (int(a[r]) for a in (step.query_start, step.query_len, step.context_len))
        for size in {1, 3, length}:
            moved = _moved(step, source.permutation(len(step.k_pool)), case.block)
            cache = moved.cache(case)
            for at in range(0, min(length, 40), size):
                n = min(size, length - at)
                part = _row_alone(moved, r, slice(start + at, start + at + n), context - length + at + n)
                y, cache = run(native, part, case, cache)
                np.testing.assert_array_equal(y, together[start + at : start + at + n])


@pytest.mark.parametrize("case", [CASES[0], *FAR], ids=range(1 + len(FAR)))
def test_the_size_of_a_block_changes_no_bit(library, case):
    expected, _ = run(native, make_step(case), case)
    for block in (1, 24, 128, 320):
        other = replace(case, block=block)
        np.testing.assert_array_equal(run(native, make_step(other), other)[0], expected)


def _moved(step: Step, to: np.ndarray, block: int) -> Step:
    """Return the step with block b of the pools at to[b]."""
    back, known = np.argsort(to), step.slots < len(to) * block
    slots = np.where(known, to[np.minimum(step.slots // block, len(to) - 1)] * block + step.slots % block, step.slots)
    return replace(
        step, k_pool=step.k_pool[back], v_pool=step.v_pool[back], slots=slots, block_tables=to[step.block_tables]
    )


def _row_alone(step: Step, r: int, tokens: slice, context: int) -> Step:
    n = tokens.stop - tokens.start
    return replace(
        step,
        q=step.q[tokens],
        k=step.k[tokens],
        v=step.v[tokens],
        slots=step.slots[tokens],
        block_tables=step.block_tables[r : r + 1],
        query_start=np.array([0]),
        query_len=np.array([n]),
        context_len=np.array([context]),
        num_decode=int(n == 1),
    )


def test_a_table_beyond_the_pool_reads_nothing_outside_it(library):
    case = CASES[0]
    step = make_step(case)
    tables = step.block_tables.copy()
    tables[0] = 10**6
    y, _ = run(native, replace(step, block_tables=tables), case)
    np.testing.assert_array_equal(y[1:], run(native, step, case)[0][1:])


# The ALiBi horizon: a row's last token attends to known keys, and all heads have steep slopes.
STEEP = Case(rows=((1, 2047),), head_dim=16, kv_heads=4, block=32, bias_max=2, spread=1.0)


def key_share(library, step: Step, case: Case, attention=native) -> tuple[np.ndarray, float]:
    """Attend -> results, and the share of the keys that was read."""
    before = library.key_counts()
    y, _ = run(attention, step, case)
    after = library.key_counts()
    return y, (after.read - before.read) / (after.visible - before.visible)


def test_keys_beyond_the_horizon_are_not_read(library):
    """Their slots may hold anything, then: these are 100 keys of 2048, and heads see no farther than some 200."""
    step = make_step(STEEP)
    expected, everything = key_share(library, step, STEEP, native_of_all)
    y, share = key_share(library, step, STEEP)
    assert everything == 1
    assert 0.05 < share < 0.2
    np.testing.assert_allclose(y[0], expected[0], atol=1e-6)
    cache = step.cache(STEEP)
    far = step.block_tables[0, :8]  # the oldest 256 keys, of which the norms alone are known
    blank = replace(cache, keys=cache.keys.at[far].set(jnp.nan), values=cache.values.at[far].set(jnp.nan))
    np.testing.assert_array_equal(run(native, step, STEEP, blank)[0], y)


def test_prefill_skips_as_decode_does(library):
    case = replace(STEEP, rows=((300, 1700),))
    _, share = key_share(library, make_step(case), case)
    assert 0.05 < share < 0.3


@pytest.mark.parametrize("flat", [replace(STEEP, alibi=False), replace(STEEP, bias_max=40, kv_heads=1)])
def test_without_slopes_everything_is_read(library, flat):
    assert key_share(library, make_step(flat), flat)[1] == 1


@pytest.mark.parametrize("place", [0, 130, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_far_key_that_outweighs_its_distance_is_read(library, place, dtype):
    """One huge key among small ones: its group is read, and not much else."""
    case = replace(STEEP, dtype=dtype)
    step = make_step(case)
    block, offset = step.block_tables[0, place // case.block], place % case.block
    step.k_pool[block, :, offset] = 1000 * step.q[0]  # a score of some thousands
    expected, _ = run(native_of_all, step, case)
    y, share = key_share(library, step, case)
    np.testing.assert_allclose(y[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(y[0], step.v_pool[block, :, offset], atol=0.02)  # all weight is the far key's
    assert share < 0.3
    found, _ = run(reference, step, case)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_what_is_not_a_number_is_never_left_out(library, strange, softcap):
    case = replace(STEEP, softcap=softcap)
    step = make_step(case)
    step.k_pool[step.block_tables[0, 2], :, 3, 5] = strange
    expected, _ = run(native_of_all, step, case)
    y, _ = run(native, step, case)
    np.testing.assert_allclose(y[0], expected[0], atol=1e-6)


@settings(max_examples=15)
@given(
    before=st.integers(200, 1500),
    tokens=st.integers(1, 60),
    bias_max=st.floats(0.5, 16),
    spread=st.floats(0.01, 4),
    outliers=st.lists(st.tuples(st.integers(0, 199), st.floats(1, 1e4)), max_size=3),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
    softcap=st.sampled_from([None, 20.0]),
    cut=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_the_alibi_horizon_changes_nothing(before, tokens, bias_max, spread, outliers, dtype, softcap, cut, seed):
    """Against every key, within rounding; and against another chunking, to the last bit."""
    case = Case(
        rows=((64, 1536),), head_dim=16, dtype=dtype, softcap=softcap, bias_max=float(np.round(bias_max)), spread=spread
    )
    step = make_step(case, seed)
    for place, factor in outliers:
        step.k_pool[step.block_tables[0, place // case.block], :, place % case.block] *= np.float32(factor)
    row = _row_alone(step, 0, slice(0, tokens), before + tokens)
    row = replace(row, slots=_slots(step, before, tokens, case.block))
    y, _ = run(native, row, case)
    expected, _ = run(native_of_all, row, case)
    np.testing.assert_allclose(y, expected, atol=2e-5, rtol=2e-5)
    cut = min(cut, tokens - 1)
    cache = row.cache(case)
    for part in (slice(0, cut), slice(cut, tokens)):
        if part.stop > part.start:
            z, cache = run(native, _row_alone(row, 0, part, before + part.stop), case, cache)
            np.testing.assert_array_equal(z, y[part])


def _slots(step: Step, first: int, count: int, block: int) -> np.ndarray:
    positions = np.arange(first, first + count)
    return step.block_tables[0, positions // block] * block + positions % block
