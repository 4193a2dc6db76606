"""The native attention over the paged cache against `model.attention`, on every instruction set of this machine."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import MptConfig
from model.kernels.cpu import calls
from model.mpt import Qkv
from model.step import StepBatch, xla_attention

reference = jax.jit(xla_attention, static_argnums=4)
native = jax.jit(calls.paged_attention, static_argnums=4, donate_argnums=(1, 2))


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


def make_step(case: Case, seed: int = 0) -> Step:
    source = np.random.default_rng(seed)
    Hkv, H, hd, block = case.kv_heads, case.kv_heads * case.group, case.head_dim, case.block
    lengths = np.array([length for length, _ in case.rows])
    contexts = np.array([length + before for length, before in case.rows])
    needed = -(-contexts // block)
    T, R, N = lengths.sum() + 3, len(lengths) + 2, needed.sum() + 2  # padding tokens, padding rows, foreign blocks
    blocks = source.permutation(N)
    tables, slots = np.zeros((R, needed.max() + 1), np.int32), np.full(T, N * block)
    pools = np.full((2, N, Hkv, block, hd), np.nan, np.float32)
    at = 0
    for r, (length, before) in enumerate(case.rows):
        tables[r, : needed[r]], blocks = blocks[: needed[r]], blocks[needed[r] :]
        places = np.arange(before + length)
        own = tables[r, places // block] * block + places % block
        slots[at : at + length] = own[before:]
        for pool in pools:
            pool[own[:before] // block, :, own[:before] % block] = source.standard_normal((before, Hkv, hd))
        at += length
    rows = np.zeros((3, R), np.int64)
    rows[:, : len(lengths)] = np.cumsum(lengths) - lengths, lengths, contexts
    q, k, v = (1.5 * source.standard_normal((T, heads, hd)).astype(np.float32) for heads in (H, Hkv, Hkv))
    decode = next((r for r, (length, _) in enumerate(case.rows) if length > 1), len(lengths))
    return Step(q, k, v, *pools, slots, tables, *rows, decode)


def run(attention, step: Step, case: Case):
    pools = (jnp.asarray(step.k_pool, case.dtype), jnp.asarray(step.v_pool, case.dtype))
    parts = [jnp.asarray(a) for a in (step.q, step.k, step.v)]
    fused = jnp.concatenate([a.reshape(len(a), -1) for a in parts], axis=1) if case.alibi else None  # both ways in
    qkv = Qkv(*parts, fused)
    y, k_pool, v_pool = attention(qkv, *pools, step.batch(), case.config)
    return np.asarray(y), np.asarray(k_pool.astype(jnp.float32)), np.asarray(v_pool.astype(jnp.float32))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_attention_is_that_of_the_definition(library, case):
    check_against_definition(case)


def check_against_definition(case: Case) -> None:
    step = make_step(case)
    (y, *pools), (expected, *expected_pools) = run(native, step, case), run(reference, step, case)
    used = step.query_len.sum()
    np.testing.assert_allclose(y[:used], expected[:used], rtol=2e-5, atol=2e-5)
    assert not y[used:].any()
    np.testing.assert_array_equal(pools, expected_pools)  # the keys and values are where they belong


@settings(max_examples=8, derandomize=True)  # the same for every instruction set, so that each compiles once
@given(
    decodes=st.lists(st.tuples(st.just(1), st.integers(0, 150)), max_size=2),
    chunks=st.lists(st.tuples(st.integers(2, 70), st.integers(0, 150)), min_size=1, max_size=2),
    head_dim=st.integers(1, 130),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    block=st.sampled_from([1, 7, 16, 32, 128]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    alibi=st.booleans(),
    softcap=st.sampled_from([None, 10.0]),
    window=st.none() | st.integers(0, 100),
)
def test_attention_of_any_shape_is_that_of_the_definition(library, decodes, chunks, **shape):
    check_against_definition(Case(rows=(*decodes, *chunks), **shape))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_query_depends_on_its_own_sequence_alone(library, case):
    """To the last bit: alone or beside others, as a decode row or in chunks of any size, wherever its blocks lie."""
    step = make_step(case)
    together, *_ = run(native, step, case)
    source = np.random.default_rng(1)
    for r in range(len(case.rows)):
        start, length, context = (int(a[r]) for a in (step.query_start, step.query_len, step.context_len))
        for size in {1, 3, length}:
            moved = _moved(step, source.permutation(len(step.k_pool)), case.block)
            for at in range(0, min(length, 40), size):
                n = min(size, length - at)
                part = _row_alone(moved, r, slice(start + at, start + at + n), context - length + at + n)
                y, k_pool, v_pool = run(native, part, case)
                np.testing.assert_array_equal(y, together[start + at : start + at + n])
                moved = replace(moved, k_pool=k_pool, v_pool=v_pool)


def _moved(step: Step, to: np.ndarray, block: int) -> Step:
    """The same with block b of the pools at to[b]."""
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
    y, *_ = run(native, replace(step, block_tables=tables), case)
    np.testing.assert_array_equal(y[1:], run(native, step, case)[0][1:])
