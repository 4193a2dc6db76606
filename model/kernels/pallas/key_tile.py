"""The contribution of a tile of keys to a tile of queries: MPT's scores and the running softmax, in float32.

Shared by both platforms: everything here is elementwise or a reduction over the last axis; products and memory accesses
are in the kernels.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.ops.alibi import alibi_slopes
from model.ops.precision import product_precision

NEVER = float(np.finfo(np.float32).min)  # finite, so that a row with no key yet stays free of nan


def head_slopes(config: MptConfig) -> Array:
    """Return ALiBi's slopes [H] float32; 0 for a model without ALiBi, whose bias is then exactly 0."""
    if not config.alibi:
        return jnp.zeros(config.n_heads)
    return jnp.asarray(alibi_slopes(config.n_heads, config.alibi_bias_max))


def operand_precision(dtype: DTypeLike) -> lax.Precision | None:
    """Return the precision of products: exact for float32 operands, the default for 16-bit ones."""
    return product_precision(dtype) if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def visible_keys(q_positions: Array, k_positions: Array, keys: Array, config: MptConfig) -> Array:
    """Return which keys each query sees: q_positions [t, 1], k_positions [1, s], keys [] -> [t, s] bool."""
    distance = q_positions - k_positions
    visible = (distance >= 0) & (k_positions < keys)
    if config.sliding_window is not None:
        visible &= distance <= config.sliding_window
    return visible


def biased_scores(products: Array, slopes: Array, q_positions: Array, k_positions: Array, config: MptConfig) -> Array:
    """Return `layers.attention.score` of its product q k^T [..., t, s], slopes [..., t, 1] -> [..., t, s] float32."""
    s = products * config.softmax_scale
    if config.attn_logit_softcap is not None:
        s = config.attn_logit_softcap * jnp.tanh(s / config.attn_logit_softcap)
    return s - slopes * (q_positions - k_positions).astype(jnp.float32)


def rescale(top: Array, total: Array, s: Array, visible: Array) -> tuple[Array, Array, Array, Array]:
    """Advance the running softmax (Milakov and Gimelshein 2018) by scores s [..., t, s].

    top and total [..., t, 1] so far -> (new top, new total, weights [..., t, s] of these keys, factor [..., t, 1]
    for the values summed so far).
    """
    s = jnp.where(visible, s, NEVER)
    new_top = jnp.maximum(top, jnp.max(s, axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(s - new_top), 0.0)
    keep = jnp.exp(top - new_top)
    return new_top, total * keep + jnp.sum(weights, axis=-1, keepdims=True), weights, keep
