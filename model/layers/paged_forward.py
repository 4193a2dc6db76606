"""One ragged step over the paged cache: any mix of decode rows and prefill chunks in one flat run of tokens."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from model.config.mpt_config import MptConfig
from model.layers.attention import paged_attention
from model.layers.forward import Qkv, block, embed, logits
from model.ops.rope import rope_frequencies
from model.params.kv_cache import KvCache, LayerCache, write_kv
from model.params.weights import Block, Weights

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


# (Qkv of T tokens, cache, batch, config) -> ([T, H, hd] float32, the cache with their keys and values in it)
CacheAttention = Callable[[Qkv, LayerCache, StepBatch, MptConfig], tuple[Array, LayerCache]]


@cache  # the same function each time: it is a static argument of compiled programs
def write_then(attend: Callable[..., Array]) -> CacheAttention:
    """A `CacheAttention` that writes the step's keys and values, then calls `attend` as `paged_attention` is called."""

    def attention(qkv: Qkv, layer: LayerCache, batch: StepBatch, config: MptConfig) -> tuple[Array, LayerCache]:
        layer = write_kv(layer, qkv.k, qkv.v, batch.slots)
        return attend(qkv.q, layer, batch, config, slopes=qkv.slopes), layer

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
    layers = []
    for b, layer in zip(weights.blocks, cache.layers, strict=True):
        x, layer = _cached_block(x, b, layer, batch, config, attention)
        layers.append(layer)
    return x, KvCache(tuple(layers))


def row_ends(batch: StepBatch) -> Array:
    """Indices [R] of each row's last token; 0 for padding rows at the start."""
    return jnp.maximum(batch.query_start + batch.query_len - 1, 0)


def lm_logits(weights: Weights, config: MptConfig, hidden: Array) -> Array:
    """Logits [..., V] float32 of states [..., d] that `forward_step` returns."""
    return logits(weights, config, hidden)


@partial(jax.jit, static_argnames=("config", "attention"))  # traced once for all layers, inlined by the compiler
def _cached_block(
    x: Array, b: Block, layer: LayerCache, batch: StepBatch, config: MptConfig, attention: CacheAttention
) -> tuple[Array, LayerCache]:
    def attend(qkv: Qkv) -> Array:
        nonlocal layer
        y, layer = attention(qkv, layer, batch, config)
        return y

    rope = config.rope  # `dynamic` stretches only beyond `length_limit`, where no cached sequence goes
    frequencies = None if rope is None else rope_frequencies(rope, config.head_dim, rope.train_length)
    x = block(x, b, config, batch.positions, frequencies, attend)
    return x, layer
