"""Paged attention by the native kernels: `layers.attention.paged_attention` on a CPU, and the writing of the cache."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernel_call
from model.ops.alibi import alibi_slopes
from model.params.kv_cache import LayerCache
from model.params.qkv import Qkv
from model.params.step_batch import StepBatch

CACHE_DTYPES = (jnp.float32, jnp.bfloat16, jnp.int8)
"""What the kernel reads and writes."""


def paged_attention(
    qkv: Qkv, layer: LayerCache, batch: StepBatch, config: MptConfig, *, alibi_horizon: bool = True
) -> tuple[Array, LayerCache]:
    """Write a step's keys and values, then attend over the cache -> ([T, H, hd] float32, the cache).

    Pools of `CACHE_DTYPES`; the cache is updated in place if donated. A query's result depends on its own sequence
    alone, to the last bit. `alibi_horizon` False reads every key (`model.params.alibi_horizon`), for comparison.
    """
    T, H, hd = qkv.q.shape
    fused = qkv.fused
    if fused is None:
        fused = jnp.concatenate([part.reshape(T, -1) for part in (qkv.q, qkv.k, qkv.v)], axis=1)
    leaves, treedef = jax.tree.flatten(layer)
    y, *updated = kernel_call(
        "mpt_attention",
        [jax.ShapeDtypeStruct((T, H * hd), jnp.float32), *in_place(leaves)],
        input_output_aliases={6 + i: 1 + i for i in range(len(leaves))},
    )(
        fused,
        *batch_arguments(batch),
        *leaves,
        **score_attributes(config, qkv.slopes),
        norms=layer.key_norms is not None,
        alibi_horizon=alibi_horizon,
    )
    return y.reshape(T, H, hd), jax.tree.unflatten(treedef, updated)


def batch_arguments(batch: StepBatch) -> tuple[Array, ...]:
    """Return what the kernels read of a batch, in their order."""
    return batch.slots, batch.block_tables, batch.query_start, batch.query_len, batch.context_len


def score_attributes(config: MptConfig, slopes: NDArray[np.float32] | None = None) -> dict[str, object]:
    """Return how a score is computed; `slopes` [H] of ALiBi where they are not in the config's order."""
    if slopes is None:
        known = config.alibi
        slopes = alibi_slopes(config.n_heads, config.alibi_bias_max) if known else np.zeros(0, np.float32)
    return {
        "slopes": slopes,
        "scale": np.float32(config.softmax_scale),
        "softcap": np.float32(config.attn_logit_softcap or 0),
        "window": np.int64(-1 if config.sliding_window is None else config.sliding_window),
    }


def in_place(arrays: Sequence[Array]) -> list[jax.ShapeDtypeStruct]:
    """Return the results of a kernel that updates these arguments."""
    return [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
