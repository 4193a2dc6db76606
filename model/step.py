"""One ragged step over the paged cache: any mix of decode rows and prefill chunks in one flat run of tokens."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from model.attention import paged_attention
from model.config import MptConfig
from model.kv_cache import KvCache, write_kv
from model.mpt import Qkv, block, embed, logits
from model.rope import rope_frequencies
from model.weights import Block, Weights

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass


@dataclass
class StepBatch:
    """T tokens of R rows, decode rows first, then chunks; T, R and W are bucket sizes with padding at their ends.

    A row's tokens follow each other; its keys lie in the blocks of its table, the step's own keys included.
    """

    tokens: Array  # [T] int32, padding 0
    positions: Array  # [T] int32, place in the sequence, padding 0
    slots: Array  # [T] int32, where the token's key and value go; beyond the pool for padding, which is dropped
    block_tables: Array  # [R, W] int32, padding 0
    query_start: Array  # [R] int32, the row's first token
    query_len: Array  # [R] int32, the row's tokens in this step; 0 for padding
    context_len: Array  # [R] int32, position of the row's last token + 1; 0 for padding
    num_decode: Array  # [] int32, the first so many rows have one token each, row r's being token r
    decode_only: bool = flax.struct.field(pytree_node=False, default=False)  # no chunk in it: a leaner program


# (Qkv of T tokens, both pools, batch, config) -> ([T, H, hd] float32, both pools with the keys and values in them)
CacheAttention = Callable[[Qkv, Array, Array, StepBatch, MptConfig], tuple[Array, Array, Array]]


@cache  # the same function each time: it is a static argument of compiled programs
def write_then(attend: Callable[[Array, Array, Array, StepBatch, MptConfig], Array]) -> CacheAttention:
    """A `CacheAttention` that writes the step's keys and values, then calls `attend` as `paged_attention` is called."""

    def attention(
        qkv: Qkv, k_pool: Array, v_pool: Array, batch: StepBatch, config: MptConfig
    ) -> tuple[Array, Array, Array]:
        k_pool, v_pool = write_kv(k_pool, qkv.k, batch.slots), write_kv(v_pool, qkv.v, batch.slots)
        return attend(qkv.q, k_pool, v_pool, batch, config), k_pool, v_pool

    return attention


xla_attention = write_then(paged_attention)
"""The reference `CacheAttention`, which runs everywhere."""


def forward_step(
    weights: Weights, config: MptConfig, cache: KvCache, batch: StepBatch, attention: CacheAttention = xla_attention
) -> tuple[Array, KvCache]:
    """-> states [T, d] float32 of all tokens (garbage for padding), and the cache with new keys.

    Donate the cache: its pools are then updated in place.
    """
    x = embed(weights, config, batch.tokens, batch.positions)  # [T, d]
    keys, values = list(cache.keys), list(cache.values)
    for i, b in enumerate(weights.blocks):
        x, keys[i], values[i] = _cached_block(x, b, keys[i], values[i], batch, config, attention)
    return x, KvCache(tuple(keys), tuple(values))


def row_ends(batch: StepBatch) -> Array:
    """Indices [R] of each row's last token; 0 for padding rows at the start."""
    return jnp.maximum(batch.query_start + batch.query_len - 1, 0)


def lm_logits(weights: Weights, config: MptConfig, hidden: Array) -> Array:
    """Logits [..., V] float32 of states [..., d] that `forward_step` returns."""
    return logits(weights, config, hidden)


@partial(jax.jit, static_argnames=("config", "attention"))  # traced once for all layers, inlined by the compiler
def _cached_block(
    x: Array, b: Block, k_pool: Array, v_pool: Array, batch: StepBatch, config: MptConfig, attention: CacheAttention
) -> tuple[Array, Array, Array]:
    def attend(qkv: Qkv) -> Array:
        nonlocal k_pool, v_pool
        y, k_pool, v_pool = attention(qkv, k_pool, v_pool, batch, config)
        return y

    rope = config.rope  # `dynamic` stretches only beyond `length_limit`, where no cached sequence goes
    frequencies = None if rope is None else rope_frequencies(rope, config.head_dim, rope.train_length)
    x = block(x, b, config, batch.positions, frequencies, attend)
    return x, k_pool, v_pool
