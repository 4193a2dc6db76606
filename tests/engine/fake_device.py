"""A device without a model: it keeps a paged cache of token ids and 'samples' a hash of what attention would read.

It reads the packed arrays that the real programs read, so that any mistake in block tables, slots, positions, copies,
tokens in flight, drafts or preemption changes a hash or trips over a key at the wrong position.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from mpt_serve.engine.request import Request
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.scheduler import Drafts, Scheduler, StepRows
from mpt_serve.engine.step_inputs import (
    StepShape,
    choose_shape,
    pack_forward,
    pack_sampling,
    step_shapes,
    unpack_sampling,
)

VOCAB = 50


def next_id(context: Sequence[int], choice_index: int = 0) -> int:
    """The id that follows a context."""
    return zlib.crc32(np.asarray([choice_index, *context], np.int32).tobytes()) % VOCAB


def completion(prompt: Sequence[int], max_output: int, stop_ids: frozenset[int], choice_index: int = 0) -> list[int]:
    """What a choice must generate, whatever happens around it."""
    context = list(prompt)
    while len(context) < len(prompt) + max_output:
        context.append(next_id(context, choice_index))
        if context[-1] in stop_ids:
            break
    return context[len(prompt) :]


def make_request(
    name: str,
    prompt: Sequence[int],
    max_output: int,
    stop_ids: Sequence[int] = (),
    siblings: list[Request] | None = None,
    choice_index: int = 0,
    priority: int = 0,
    cache_salt: str = "",
) -> Request:
    params = SamplingParams(max_tokens=max_output, temperature=0, priority=priority, cache_salt=cache_salt)
    return Request(
        name,
        tuple(prompt),
        params,
        seed=0,
        max_output=max_output,
        stop_ids=frozenset(stop_ids),
        siblings=[] if siblings is None else siblings,
        choice_index=choice_index,
    )


class FakeDevice:
    """Executes steps in order, one step behind the scheduler."""

    def __init__(self, scheduler: Scheduler, max_model_len: int, max_samples: int) -> None:
        pool = scheduler.pool
        self._scheduler = scheduler
        limits = scheduler.max_num_seqs, scheduler.max_num_batched_tokens, max_samples
        self._shapes = step_shapes(*limits, ragged_decode=False)
        self._dimensions = (pool.blocks_for(max_model_len), pool.num_blocks, pool.block_size, scheduler.max_num_seqs)
        self._tokens = np.full((pool.num_blocks, pool.block_size), -1)
        self._positions = np.full((pool.num_blocks, pool.block_size), -1)
        self._last_tokens = np.full(scheduler.max_num_seqs, -1)
        self._ahead: tuple[StepRows, StepShape, np.ndarray, np.ndarray] | None = None

    @property
    def busy(self) -> bool:
        return self._ahead is not None

    def turn(self, drafts: Drafts | None = None, max_ahead: int = 1) -> StepRows:
        """What the pipeline does once: dispatch the next step, then read the one before; or the other way round."""
        if self._ahead is not None and (max_ahead == 0 or self._ahead[0].speculative):
            self._read()
        step = self._scheduler.schedule(drafts)
        behind, self._ahead = self._ahead, None
        if step.rows:
            shape = StepShape(choose_shape(self._shapes, step), *self._dimensions)
            sampling = pack_sampling(step, shape.key.num_samples, self._scheduler.max_num_seqs)
            ahead = step, shape, pack_forward(step, shape), sampling
        self._ahead = behind
        if behind is not None:
            self._read()
        self._ahead = ahead if step.rows else None
        return step

    def drain(self, limit: int = 2_000) -> Iterator[StepRows]:
        """Turn until nothing is left to do."""
        for _ in range(limit):
            if not (self.busy or self._scheduler.running or self._scheduler.waiting):
                return
            yield self.turn()
        raise AssertionError("requests are starving")

    def _read(self) -> None:
        assert self._ahead is not None
        step, shape, forward, sampling = self._ahead
        self._ahead = None
        ids = self._execute(step, shape, forward, sampling)
        self._scheduler.accept(step.rows, ids[: step.num_samples])

    def _execute(self, step: StepRows, shape: StepShape, forward: np.ndarray, sampling: np.ndarray) -> list[int]:
        for source, to in step.copies:
            self._tokens[to], self._positions[to] = self._tokens[source], self._positions[source]
        num_decode, (tokens, positions, slots), row_fields, tables, sampled = shape.split(forward)
        in_flight = tokens < 0
        tokens = np.where(in_flight, self._last_tokens[np.where(in_flight, -1 - tokens, 0)], tokens)
        written = slots < self._tokens.size
        self._tokens.reshape(-1)[slots[written]] = tokens[written]
        self._positions.reshape(-1)[slots[written]] = positions[written]
        query_start, query_len, context_len = row_fields
        assert (query_len[: num_decode[0]] == 1).all()
        assert (query_start[: num_decode[0]] == np.arange(num_decode[0])).all()
        assert query_len.sum() == written.sum()
        contexts: dict[int, np.ndarray] = {}
        for row in np.flatnonzero(query_len):
            at = np.arange(context_len[row])
            blocks, offsets = tables[row, at // shape.block_size], at % shape.block_size
            assert (self._positions[blocks, offsets] == at).all(), "a row reads a key of another position"
            context = self._tokens[blocks, offsets]
            for i in range(query_len[row]):
                assert context[positions[query_start[row] + i]] == tokens[query_start[row] + i]
                contexts[query_start[row] + i] = context[: positions[query_start[row] + i] + 1]
        return self._sample(step.num_samples, sampled, contexts, sampling)

    def _sample(
        self, count: int, sampled: np.ndarray, contexts: dict[int, np.ndarray], sampling: np.ndarray
    ) -> list[int]:
        batch = unpack_sampling(sampling)
        ids = []
        for i in range(count):
            context = contexts[sampled[i]]
            assert batch.position[i] == len(context)
            ids.append(next_id(context, int(batch.choice_index[i])))
            if batch.write_slot[i] < len(self._last_tokens):
                self._last_tokens[batch.write_slot[i]] = ids[-1]
        assert (np.asarray(batch.write_slot)[count:] >= len(self._last_tokens)).all()
        return ids
