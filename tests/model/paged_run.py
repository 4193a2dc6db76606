"""Runs sequences through the paged step as an engine would: any chunking, scattered blocks, several rows at once."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from model.config import MptConfig
from model.kv_cache import init_kv_cache
from model.step import CacheAttention, StepBatch, forward_step, lm_logits, row_ends, xla_attention
from model.weights import Weights

BLOCK = 16


class PagedRun:
    """A paged cache of `rows` sequences of up to `length` tokens, whose blocks lie scattered in the pool.

    Every call compiles to one program: T = rows * length tokens at most, padded.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        rows: int,
        length: int,
        tokens: int,
        attention: CacheAttention = xla_attention,
    ) -> None:
        self._weights, self._rows, self._tokens, self._attention = weights, rows, tokens, attention
        width = -(-length // BLOCK)
        blocks = rows * width + 3
        self._slots_end = blocks * BLOCK
        order = np.random.default_rng(7).permutation(blocks)[: rows * width]
        self._tables = order.reshape(rows, width).astype(np.int32)
        self._cache = init_kv_cache(config, blocks, BLOCK, jnp.float32)
        self._config = config

    def fill_cache(self, value: float) -> None:
        """What blocks may hold of their last owners."""
        self._cache = jax.tree.map(lambda pool: jnp.full_like(pool, value), self._cache)

    def step(self, chunks: Sequence[tuple[int, int, Sequence[int]]]) -> dict[int, np.ndarray]:
        """Runs chunks (row, position of its first token, ids) in one step -> logits [V] of each row's last token."""
        ordered = sorted(chunks, key=lambda chunk: len(chunk[2]) > 1)  # decode rows first
        row = np.zeros((3, self._rows), np.int32)  # start, length, context
        token = np.zeros((3, self._tokens), np.int32)  # id, position, slot
        token[2] = self._slots_end
        tables = np.zeros_like(self._tables)
        at = 0
        for r, (sequence, first, ids) in enumerate(ordered):
            positions = np.arange(first, first + len(ids))
            slots = self._tables[sequence][positions // BLOCK] * BLOCK + positions % BLOCK
            token[:, at : at + len(ids)] = ids, positions, slots
            row[:, r] = at, len(ids), first + len(ids)
            tables[r] = self._tables[sequence]
            at += len(ids)
        decodes = sum(len(ids) == 1 for _, _, ids in ordered)
        batch = StepBatch(*token, tables, *row, np.int32(decodes))  # type: ignore[arg-type]
        logits, self._cache = _step(self._config, self._attention, self._weights, self._cache, batch)
        return {sequence: np.asarray(logits[r]) for r, (sequence, _, _) in enumerate(ordered)}


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _step(config, attention, weights, cache, batch):  # type: ignore[no-untyped-def]
    hidden, cache = forward_step(weights, config, cache, batch, attention)
    return lm_logits(weights, config, hidden[row_ends(batch)]), cache
