"""A ragged step over the paged cache: any mix of decode rows and prefill chunks in one flat run of tokens."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from model.ops.pytree import dataclass, static


@dataclass
class StepBatch:
    """T tokens of R rows, decode rows first, then prefill chunks; T, R and W are bucket sizes, padded at the end.

    A row's tokens are consecutive; its keys lie in the blocks of its table, the step's own keys included.
    """

    tokens: Array  # [T] int32, padding 0
    positions: Array  # [T] int32, index in the sequence, padding 0
    slots: Array  # [T] int32, where the token's key and value go; beyond the pool for padding, which is dropped
    block_tables: Array  # [R, W] int32, padding 0
    query_start: Array  # [R] int32, the row's first token
    query_len: Array  # [R] int32, the row's tokens in this step; 0 for padding
    context_len: Array  # [R] int32, position of the row's last token + 1; 0 for padding
    num_decode: Array  # [] int32, that many rows at the start have one token each, row r's being token r
    decode_only: bool = static(False)  # no prefill chunk in it: a leaner program


class TokenEmbeds(NamedTuple):
    """Embeddings of some of a step's T tokens, in place of rows of the embedding table."""

    rows: Array  # [T, d] float32, any numbers where the table's row counts
    replaced: Array  # [T] bool, where it does not


def row_ends(batch: StepBatch) -> Array:
    """Return the index [R] of each row's last token; 0 for padding rows at the start."""
    return jnp.maximum(batch.query_start + batch.query_len - 1, 0)
