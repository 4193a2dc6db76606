"""Queries, keys and values of one attention layer: the product of Wqkv and its parts."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.config.mpt_config import MptConfig


class Qkv(NamedTuple):
    """Queries [..., T, H, hd], keys and values [..., T, Hkv, hd] float32.

    fused: [..., T, (H + 2 Hkv) hd], the product that they are parts of, where nothing changed them since: kernels that
        read it avoid the split.
    slopes: [H] of ALiBi, where heads are in another order than the config's.
    """

    q: Array
    k: Array
    v: Array
    fused: Array | None = None
    slopes: NDArray[np.float32] | None = None


def split_qkv(qkv: Array, config: MptConfig, shards: int) -> tuple[Array, Array, Array]:
    """Split [..., (H + 2 Hkv) hd], `shards` runs of [Q | K | V], into q [..., H, hd], k and v [..., Hkv, hd]."""
    lead, hd = qkv.shape[:-1], config.head_dim
    q_size, kv_size = config.n_heads * hd // shards, config.kv_n_heads * hd // shards
    runs = qkv.reshape(*lead, shards, q_size + 2 * kv_size)
    q, k, v = jnp.split(runs, (q_size, q_size + kv_size), axis=-1)
    return q.reshape(*lead, -1, hd), k.reshape(*lead, -1, hd), v.reshape(*lead, -1, hd)
