"""A device without a model: it keeps a paged cache of token ids and 'samples' a hash of what attention would read.

It reads the packed arrays that the real step reads, so that any mistake in block tables, slots, positions, tokens in
flight or preemption changes a hash or trips over a key at the wrong position.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from mpt_serve.engine.request import Request
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.scheduler import Row, Scheduler, StepRows
from mpt_serve.engine.step_plan import StepShape, choose_shape, pack, step_shapes

VOCAB = 50


def next_id(context: Sequence[int]) -> int:
    """The id that follows a context."""
    return zlib.crc32(np.asarray(context, np.int32).tobytes()) % VOCAB


def completion(prompt: Sequence[int], max_output: int, stop_ids: frozenset[int]) -> list[int]:
    """What a request must generate, whatever happens around it."""
    context = list(prompt)
    while len(context) < len(prompt) + max_output:
        context.append(next_id(context))
        if context[-1] in stop_ids:
            break
    return context[len(prompt) :]


def make_request(name: str, prompt: Sequence[int], max_output: int, stop_ids: Sequence[int] = ()) -> Request:
    params = SamplingParams(max_tokens=max_output, temperature=0)
    return Request(name, tuple(prompt), params, seed=0, max_output=max_output, stop_ids=frozenset(stop_ids))


class FakeDevice:
    """Executes steps in order, one step behind the scheduler."""

    def __init__(self, scheduler: Scheduler, max_model_len: int) -> None:
        pool = scheduler.pool
        self._scheduler = scheduler
        self._shapes = step_shapes(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        self._dimensions = (pool.blocks_for(max_model_len), pool.num_blocks, pool.block_size, scheduler.max_num_seqs)
        self._tokens = np.full(pool.num_blocks * pool.block_size, -1)
        self._positions = np.full(pool.num_blocks * pool.block_size, -1)
        self._last_tokens = np.full(scheduler.max_num_seqs, -1)
        self._ahead: tuple[list[Row], StepShape, np.ndarray] | None = None

    @property
    def busy(self) -> bool:
        return self._ahead is not None

    def turn(self) -> StepRows:
        """What the engine's loop does once: dispatch the next step, then read the one before."""
        step = self._scheduler.schedule()
        behind, self._ahead = self._ahead, None
        if step.rows:
            shape = StepShape(*choose_shape(self._shapes, step), *self._dimensions)
            self._ahead = (step.rows, shape, pack(step, shape))
        if behind is not None:
            rows, shape, packed = behind
            self._scheduler.accept(rows, self._execute(shape, packed)[: len(rows)])
        return step

    def drain(self, limit: int = 2_000) -> Iterator[StepRows]:
        """Turn until nothing is left to do."""
        for _ in range(limit):
            if not (self.busy or self._scheduler.running or self._scheduler.waiting):
                return
            yield self.turn()
        raise AssertionError("requests are starving")

    def _execute(self, shape: StepShape, packed: np.ndarray) -> list[int]:
        num_decode, (tokens, positions, slots), row_fields, _, tables = shape.split(packed)
        in_flight = tokens < 0
        tokens = np.where(in_flight, self._last_tokens[np.where(in_flight, -1 - tokens, 0)], tokens)
        written = slots < len(self._tokens)
        self._tokens[slots[written]], self._positions[slots[written]] = tokens[written], positions[written]
        query_start, query_len, context_len, state_slot = row_fields[:4]
        assert (query_len[: num_decode[0]] == 1).all()
        assert (query_start[: num_decode[0]] == np.arange(num_decode[0])).all()
        assert query_len.sum() == written.sum()
        ids = [0] * shape.num_rows
        for row in np.flatnonzero(query_len):
            at = np.arange(context_len[row])
            read = tables[row, at // shape.block_size] * shape.block_size + at % shape.block_size
            assert (self._positions[read] == at).all(), "a row reads a key of another position"
            assert self._tokens[read[-1]] == tokens[query_start[row] + query_len[row] - 1]
            ids[row] = next_id(self._tokens[read])
            if state_slot[row] < shape.max_num_seqs:
                self._last_tokens[state_slot[row]] = ids[row]
        return ids
