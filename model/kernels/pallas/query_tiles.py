"""A ragged step cut into tiles of queries: the work of one program of a kernel, and where its results go.

A tile holds queries of one row only, so that they share that row's pages. The number of tiles is fixed by shapes (an
upper bound over all rows); tiles beyond the real ones have `keys` 0 and no query.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from model.params.step_batch import StepBatch


class QueryTiles(NamedTuple):
    """n tiles of t queries each; query i of a tile is at position first + i of its row's sequence."""

    tokens: Array  # [n, t] int32, the query's token in the step; T where the tile has no such query
    rows: Array  # [n] int32, the row whose block table holds the keys
    first: Array  # [n] int32, position of the first query
    keys: Array  # [n] int32, the row's keys up to the tile's last query; 0 for a tile without queries


def decode_tiles(batch: StepBatch, tokens: int) -> QueryTiles:
    """Return one tile of one query for each of the R rows; `tokens` is T."""
    rows = jnp.arange(batch.query_start.shape[0])
    decodes = rows < batch.num_decode
    keys = jnp.where(decodes, batch.context_len, 0)
    return QueryTiles(jnp.where(decodes, rows, tokens)[:, None], rows, jnp.maximum(keys - 1, 0), keys)


def prefill_tiles(batch: StepBatch, tokens: int, size: int) -> QueryTiles:
    """Return tiles of `size` queries over the rows after the decode rows; `tokens` is T."""
    R = batch.query_start.shape[0]
    counts = jnp.where(jnp.arange(R) < batch.num_decode, 0, (batch.query_len + size - 1) // size)  # [R]
    ends = jnp.cumsum(counts)
    n = (tokens + (size - 1) * min(R, tokens)) // size  # each row may fill one query of its last tile only
    tile = jnp.arange(n)
    rows = jnp.minimum(jnp.searchsorted(ends, tile, side="right", method="compare_all"), R - 1)
    live = tile < ends[-1]
    done = (tile - (ends - counts)[rows]) * size  # [n] queries of the row that earlier tiles hold
    within = done[:, None] + jnp.arange(size)  # [n, t] index among the row's queries
    held = live[:, None] & (within < batch.query_len[rows][:, None])
    first = batch.context_len[rows] - batch.query_len[rows] + done
    return QueryTiles(
        tokens=jnp.where(held, batch.query_start[rows][:, None] + within, tokens),
        rows=rows,
        first=jnp.where(live, first, 0),
        keys=jnp.where(live, jnp.minimum(batch.context_len[rows], first + size), 0),
    )


def tokens_of(values: Array, tiles: QueryTiles, tokens: int) -> Array:
    """Reorder results of tiles [n, t, H, hd] to the step's tokens [T, H, hd]; 0 for tokens of no tile."""
    flat = values.reshape(-1, *values.shape[2:])  # [n * t, H, hd]
    indices = jnp.full(tokens, flat.shape[0], jnp.int32)
    indices = indices.at[tiles.tokens.reshape(-1)].set(jnp.arange(flat.shape[0]), mode="drop")
    return flat.at[indices].get(mode="fill", fill_value=0)
