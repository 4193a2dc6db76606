"""The forward pass of one ragged step (`params.step_batch`) over the paged cache."""

from collections.abc import Callable
from functools import cache, partial

import jax
from jax import Array

from model.config.mpt_config import MptConfig
from model.layers.attention import paged_attention
from model.layers.forward import block, embed, logits, scaled_logits
from model.ops.rope import cached_frequencies
from model.params.kv_cache import KvCache, LayerCache, write_kv
from model.params.qkv import Qkv
from model.params.step_batch import StepBatch, TokenEmbeds
from model.params.weights import Block, Weights

CacheAttention = Callable[[Qkv, LayerCache, StepBatch, MptConfig], tuple[Array, LayerCache]]
"""(Qkv of T tokens, cache, batch, config) -> ([T, H, hd] float32, the cache with their keys and values in it)"""

WholeStep = Callable[[Array, Weights, MptConfig, KvCache, StepBatch, Array], tuple[Array, Array, KvCache]]
"""(embeddings [T, d], weights, config, cache, batch, sampled [S]) -> hidden states and cache as `forward_step`, between
them the product of the head [S, V] for the tokens `sampled`: all layers as one kernel"""


@cache  # the same function each time: it is a static argument of compiled programs
def write_then(attend: Callable[..., Array]) -> CacheAttention:
    """Return a `CacheAttention` that writes the step's keys and values, then calls `attend` like `paged_attention`."""

    def attention(qkv: Qkv, layer: LayerCache, batch: StepBatch, config: MptConfig) -> tuple[Array, LayerCache]:
        layer = write_kv(layer, qkv.k, qkv.v, batch.slots)
        return attend(qkv.q, layer, batch, config, slopes=qkv.slopes), layer

    return attention


xla_attention = write_then(paged_attention)
"""The reference `CacheAttention`, which runs everywhere."""


def forward_step(
    weights: Weights,
    config: MptConfig,
    cache: KvCache,
    batch: StepBatch,
    attention: CacheAttention = xla_attention,
    embeds: TokenEmbeds | None = None,
) -> tuple[Array, KvCache]:
    """Return the hidden states [T, d] float32 of all tokens (undefined for padding), and the cache with the new keys.

    Donate the cache: its pools are then updated in place.
    """
    x = embed(weights, config, batch.tokens, batch.positions, embeds)  # [T, d]
    layers = []
    for b, layer in zip(weights.blocks, cache.layers, strict=True):
        x, layer = _cached_block(x, b, layer, batch, config, attention)
        layers.append(layer)
    return x, KvCache(tuple(layers))


def forward_and_logits(
    weights: Weights,
    config: MptConfig,
    cache: KvCache,
    batch: StepBatch,
    sampled: Array,
    attention: CacheAttention = xla_attention,
    whole_step: WholeStep | None = None,
    embeds: TokenEmbeds | None = None,
) -> tuple[Array, Array, KvCache]:
    """Return hidden states and cache as `forward_step`, between them the logits [S, V] of the tokens `sampled` [S].

    whole_step: computes all layers in place of `attention` and the kernels of linear layers.
    """
    if whole_step is None:
        hidden_states, cache = forward_step(weights, config, cache, batch, attention, embeds)
        return hidden_states, lm_logits(weights, config, hidden_states[sampled]), cache
    x = embed(weights, config, batch.tokens, batch.positions, embeds)
    hidden_states, product, cache = whole_step(x, weights, config, cache, batch, sampled)
    return hidden_states, scaled_logits(product, config), cache


def lm_logits(weights: Weights, config: MptConfig, hidden_states: Array) -> Array:
    """Return the logits [..., V] float32 of hidden states [..., d] that `forward_step` returned."""
    return logits(weights, config, hidden_states)


@partial(jax.jit, static_argnames=("config", "attention"))  # traced once for all layers, inlined by the compiler
def _cached_block(
    x: Array, b: Block, layer: LayerCache, batch: StepBatch, config: MptConfig, attention: CacheAttention
) -> tuple[Array, LayerCache]:
    def attend(qkv: Qkv) -> Array:
        nonlocal layer
        y, layer = attention(qkv, layer, batch, config)
        return y

    frequencies = cached_frequencies(config.rope, config.head_dim)
    x = block(x, b, config, batch.positions, frequencies, attend)
    return x, layer
