"""Which tokens of which requests the next step computes. Plain Python, no JAX, no clock, no threads.

The loop around it keeps one step ahead of the host: `schedule` makes step k + 1 while step k still runs, and `accept`
takes the sampled ids of step k afterwards. A request's counters therefore run ahead of what the host knows:
`num_computed` counts tokens of dispatched steps, `in_flight` counts sampled ids not yet read.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.request import FinishReason, Request


@dataclass(frozen=True, slots=True)
class Row:
    """One request's share of a step: compute the tokens at positions [start, start + length).

    samples: the row reaches the end of the sequence, so that the step samples the next id.
    token_in_flight: the row's last token is one that the host does not know yet; the device has it.
    """

    request: Request
    start: int
    length: int
    samples: bool
    token_in_flight: bool


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one step; the first `num_decode` rows have one token each."""

    rows: list[Row]
    num_decode: int

    @property
    def num_tokens(self) -> int:
        return sum(row.length for row in self.rows)


class Scheduler:
    """Continuous batching, first come first served, with chunked prefill and preemption by recompute.

    Every step takes the decode rows first (one token each), then spends the rest of the token budget on prefill
    chunks, in order of arrival; a waiting request is admitted when the pool has blocks for all the tokens it has.
    When a decode row finds no free block, the youngest running request gives up its blocks and returns to the front
    of the queue with the ids it has generated; it later prefills prompt and generated ids as if they were a prompt.

    Invariants, checked by `check_integrity`:
    - all running requests arrived before all waiting ones, and both are in order of arrival. The oldest request is
      thus never preempted while another runs, and nobody overtakes: whoever is accepted finishes.
    - running requests hold one slot each and blocks for all their computed tokens; waiting ones hold neither.
    - every block is free or held by a running request (see `BlockPool`).
    - a preempted request is not admitted again before its token in flight has been accepted.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={max_num_batched_tokens} must be at least max_num_seqs={max_num_seqs}: "
                "each running request needs a token per step"
            )
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.num_preemptions = 0
        # Slots are handed out lowest first, so that few requests use few slots.
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._arrivals = 0

    # The life of a request

    def fits(self, num_prompt_tokens: int, max_output: int) -> bool:
        """Whether a request can run to its end alone. The last generated token is never fed, hence never stored."""
        return self.pool.blocks_for(num_prompt_tokens + max_output - 1) <= self.pool.num_blocks

    def add(self, request: Request) -> None:
        """Queue a request. Raises `ValueError` when it could never finish in this pool."""
        if not self.fits(len(request.prompt_ids), request.max_output):
            raise ValueError(f"request {request.request_id} can never fit {self.pool.num_blocks} blocks")
        request.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.append(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is; its blocks and slot are free at once.

        Steps in flight may still write the freed blocks: the device executes steps in order, so a new owner's writes
        come later. Their sampled ids are dropped by `accept`.
        """
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request.slot is None:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
            self._release(request)

    # One step

    def schedule(self) -> StepRows:
        """Choose the next step's rows and account for them; no rows when there is nothing to compute now."""
        preemptions = self.num_preemptions
        rows = self._decode_rows()
        num_decode = len(rows)
        budget = self.max_num_batched_tokens - num_decode
        for row in self._running_prefills(budget):
            rows.append(row)
            budget -= row.length
        # Blocks given up in this pass are for the requests that lacked them.
        if preemptions == self.num_preemptions:
            rows.extend(self._admit(budget))
        return StepRows(rows, num_decode)

    def accept(self, rows: Sequence[Row], token_ids: Sequence[int]) -> list[tuple[Request, int]]:
        """Take the ids sampled by a step, one per row; finish requests that hit a stop id or their length.

        Returns the requests that received a token, with it. Rows of requests that ended meanwhile are dropped.
        """
        accepted = []
        for row, token in zip(rows, token_ids, strict=True):
            request = row.request
            if not row.samples:
                continue
            request.in_flight -= 1
            if request.finish_reason is not None:
                continue
            request.output_ids.append(token)
            accepted.append((request, token))
            if token in request.stop_ids:
                self.finish(request, "stop")
            elif len(request.output_ids) >= request.max_output:
                self.finish(request, "length")
        return accepted

    def _decode_rows(self) -> list[Row]:
        """One token for each running request that has exactly one to compute; preempts the youngest for blocks."""
        rows: list[Row] = []
        index = 0
        # Oldest first; preemption takes from the end of `running`, so no request chosen here is preempted afterwards.
        while index < len(self.running):
            request = self.running[index]
            index += 1
            if request.exhausted or request.num_tokens - request.num_computed != 1:
                continue
            if self._grow(request):
                rows.append(self._row(request, 1))
        return rows

    def _running_prefills(self, budget: int) -> Iterator[Row]:
        for request in self.running:
            if budget == 0:
                return
            pending = request.num_tokens - request.num_computed
            if pending > 1:  # one pending token is a decode row: taken already, or exhausted
                length = min(budget, pending)
                budget -= length
                yield self._row(request, length)

    def _admit(self, budget: int) -> list[Row]:
        rows: list[Row] = []
        while budget > 0 and self.waiting and self._free_slots:
            request = self.waiting[0]
            if request.in_flight:  # preempted, and its last token has not been read yet
                break
            needed = self.pool.blocks_for(request.num_tokens)
            # Headroom: each running request will soon want a block; admitting into their last ones would preempt.
            if needed + len(self.running) > self.pool.num_free:
                break
            self.waiting.popleft()
            request.blocks = self.pool.allocate(needed)
            request.slot = self._free_slots.pop()
            self.running.append(request)
            rows.append(self._row(request, min(budget, request.num_tokens)))
            budget -= rows[-1].length
        return rows

    def _row(self, request: Request, length: int) -> Row:
        """The row that computes the next `length` tokens, accounted as dispatched."""
        start, stop = request.num_computed, request.num_computed + length
        samples = stop == request.num_tokens
        row = Row(request, start, length, samples, token_in_flight=stop > request.num_known)
        request.num_computed = stop
        request.in_flight += samples
        return row

    def _grow(self, request: Request) -> bool:
        """Make room for one more token; False when `request` itself, being the youngest, had to give up."""
        if request.num_computed < len(request.blocks) * self.pool.block_size:
            return True
        while self.pool.num_free == 0:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        request.blocks += self.pool.allocate(1)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.num_computed = 0
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        self.pool.release(request.blocks)
        self._free_slots.append(request.slot)
        request.blocks, request.slot = [], None

    def check_integrity(self) -> None:
        """Check the invariants of the class. Raises `AssertionError` naming the one that is broken."""
        self.pool.check_integrity(request.blocks for request in self.running)
        queue = [*self.running, *self.waiting]
        if any(a.arrival >= b.arrival for a, b in pairwise(queue)):
            raise AssertionError("requests are not in order of arrival")
        slots = [request.slot for request in self.running if request.slot is not None]
        if len(slots) != len(self.running) or sorted([*self._free_slots, *slots]) != list(range(self.max_num_seqs)):
            raise AssertionError(f"slots {slots} of running requests and free slots {self._free_slots} do not add up")
        for request in self.running:
            if request.num_computed > len(request.blocks) * self.pool.block_size:
                raise AssertionError(f"{request.request_id} computed {request.num_computed} tokens without blocks")
            if not 0 <= request.num_generated <= request.max_output:
                raise AssertionError(f"{request.request_id} generates more than {request.max_output} tokens")
        for request in self.waiting:
            if request.blocks or request.slot is not None or request.num_computed:
                raise AssertionError(f"{request.request_id} waits, but holds blocks or a slot")
