"""Which heads each shard of a tensor-parallel model holds, and the parameters in that order.

Under ALiBi, heads with flat slopes read distant keys and heads with steep slopes do not (`alibi_horizon`). Heads are
therefore assigned to shards in slope order, back and forth, so that each shard gets steep and flat ones alike.
Key/value heads move with the query heads that share them.
"""

import numpy as np
from numpy.typing import NDArray

from model.config.mpt_config import MptConfig
from model.ops.alibi import alibi_slopes


def kv_head_order(config: MptConfig, shards: int) -> NDArray[np.intp]:
    """Return the key/value heads [Hkv], those of the first shard first; `shards` must divide Hkv."""
    if shards == 1 or not config.alibi:
        return np.arange(config.kv_n_heads)
    slopes = alibi_slopes(config.n_heads, config.alibi_bias_max).reshape(config.kv_n_heads, -1)
    rounds = np.argsort(slopes.min(axis=1), kind="stable").reshape(-1, shards)  # each shard takes one head of a round
    rounds[1::2] = rounds[1::2, ::-1].copy()
    return np.sort(rounds.T, axis=1).reshape(-1)


def head_order(config: MptConfig, shards: int) -> NDArray[np.intp]:
    """Return the query heads [H] in the order of `kv_head_order`."""
    group = config.n_heads // config.kv_n_heads
    return _runs(kv_head_order(config, shards), group)


def slopes_in_layout(config: MptConfig, shards: int) -> NDArray[np.float32] | None:
    """Return the ALiBi slopes [H] in the order of `head_order`; None where that is the config's order."""
    if shards == 1 or not config.alibi:
        return None
    return alibi_slopes(config.n_heads, config.alibi_bias_max)[head_order(config, shards)]


def arrange_heads(path: str, parameter: NDArray[np.generic], config: MptConfig, shards: int) -> NDArray[np.generic]:
    """Reorder the parameter at a `WeightSpec.path` from the checkpoint's order of heads to the shards' order.

    Rows [Q | K | V] of a Wqkv weight or bias become [Q_0 | K_0 | V_0 | Q_1 | ...], a run for each shard.
    """
    axis, order = _order(path, config, shards)
    return parameter if order is None else np.take(parameter, order, axis)


def restore_heads(path: str, arranged: NDArray[np.generic], config: MptConfig, shards: int) -> NDArray[np.generic]:
    """Undo `arrange_heads`."""
    axis, order = _order(path, config, shards)
    return arranged if order is None else np.take(arranged, np.argsort(order), axis)


def _order(path: str, config: MptConfig, shards: int) -> tuple[int, NDArray[np.intp] | None]:
    """Return the axis of a parameter that runs over heads, and the source of each entry; None: no reordering."""
    if shards == 1:
        return 0, None
    queries, keys = (_runs(order(config, shards), config.head_dim) for order in (head_order, kv_head_order))
    if "/wqkv/" in path:
        values = len(queries) + len(keys)
        parts = (np.split(part, shards) for part in (queries, len(queries) + keys, values + keys))
        return 0, np.concatenate([part for run in zip(*parts, strict=True) for part in run])
    if path.endswith("/out_proj/weight"):
        return 1, queries
    if "/q_norm/" in path and config.qk_norm == "ln":
        return 0, queries
    if "/k_norm/" in path and config.qk_norm == "ln":
        return 0, keys
    return 0, None


def _runs(order: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Return the indices of runs of `length` entries each, the runs in this order."""
    return (order[:, None] * length + np.arange(length)).reshape(-1)
