"""Runs sequences through the paged step as an engine would: any chunking, scattered blocks, several rows at once."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from compilation import OPTIMISED
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.layers.paged_forward import CacheAttention, WholeStep, forward_and_logits, xla_attention
from model.params.kv_cache import init_kv_cache
from model.params.step_batch import StepBatch, row_ends
from model.params.weights import Weights

BLOCK = 16


class PagedRun:
    """A paged cache of `rows` sequences of up to `length` tokens, whose blocks lie scattered in the pool.

    Every call compiles to one program: T = rows * length tokens at most, padded.

    optimised: let XLA optimise the program, which takes longer, for runs of many tokens.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        rows: int,
        length: int,
        tokens: int,
        attention: CacheAttention = xla_attention,
        whole_step: WholeStep | None = None,
        block: int = BLOCK,
        dtype: DTypeLike = jnp.float32,
        optimised: bool = False,
    ) -> None:
        self._step = _optimised_step if optimised else _step
        self._weights, self._rows, self._tokens, self._kernels = weights, rows, tokens, (attention, whole_step)
        self._block = block
        width = -(-length // block)
        blocks = rows * width + 3
        self._slots_end = blocks * block
        order = np.random.default_rng(7).permutation(blocks)[: rows * width]
        self._tables = order.reshape(rows, width).astype(np.int32)
        self._cache = init_kv_cache(config, blocks, block, dtype)
        self._config = config

    def fill_cache(self, value: float) -> None:
        """Fill the cache with what blocks may hold of their last owners."""
        self._cache = jax.tree.map(lambda pool: jnp.full_like(pool, value), self._cache)

    def step(self, chunks: Sequence[tuple[int, int, Sequence[int]]]) -> dict[int, np.ndarray]:
        """Run chunks (row, position of its first token, ids) in one step -> logits [V] of each row's last token."""
        ordered = sorted(chunks, key=lambda chunk: len(chunk[2]) > 1)  # decode rows first
        batch = self._batch(ordered)
        logits, self._cache = self._step(self._config, self._kernels, self._weights, self._cache, batch)
        return {sequence: np.asarray(logits[r]) for r, (sequence, _, _) in enumerate(ordered)}

    def temporary_bytes(self) -> int:
        """Return the memory that a step takes beside its arguments and results."""
        arguments = self._config, self._kernels, self._weights, self._cache, self._batch([])
        program = self._step.lower(*arguments).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    def _batch(self, chunks: Sequence[tuple[int, int, Sequence[int]]]) -> StepBatch:
        row = np.zeros((3, self._rows), np.int32)  # start, length, context
        token = np.zeros((3, self._tokens), np.int32)  # id, position, slot
        token[2] = self._slots_end
        tables = np.zeros_like(self._tables)
        at = 0
        for r, (sequence, first, ids) in enumerate(chunks):
            positions = np.arange(first, first + len(ids))
            slots = self._tables[sequence][positions // self._block] * self._block + positions % self._block
            token[:, at : at + len(ids)] = ids, positions, slots
            row[:, r] = at, len(ids), first + len(ids)
            tables[r] = self._tables[sequence]
            at += len(ids)
        decodes = sum(len(ids) == 1 for _, _, ids in chunks)
        return StepBatch(*token, tables, *row, np.int32(decodes))  # type: ignore[arg-type]


def _run(config, kernels, weights, cache, batch):  # type: ignore[no-untyped-def]
    _, logits, cache = forward_and_logits(weights, config, cache, batch, row_ends(batch), *kernels)
    return logits, cache


_jit = partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
_step = _jit(_run)
_optimised_step = _jit(_run, compiler_options=OPTIMISED)
