"""Continuous batching: which tokens of which requests the next step computes.

Plain Python: no JAX, no clock, no threads. The pipeline runs one step ahead of the host: `schedule` makes step k + 1
while step k still runs, and `accept` takes the sampled ids of step k afterwards. So a request's counters run ahead of
what the host knows: `num_computed` counts tokens of dispatched steps, `in_flight` sampled ids that were not read.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from operator import attrgetter

from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.block_tables import BlockTables
from mpt_serve.engine.integrity import check_requests
from mpt_serve.engine.patience import Patience
from mpt_serve.engine.pauses import Pauses
from mpt_serve.engine.request import FinishReason, Request
from mpt_serve.engine.stats import RequestCounters
from mpt_serve.engine.step_rows import Drafts, Row, StepRows, has_all_rows, has_written_prompt, readers_of
from mpt_serve.engine.token_budget import PromptLimits, TokenBudget

_Limits = Callable[[int], PromptLimits]
_BackgroundLimit = Callable[[int], int] | None
_NO_LIMITS = PromptLimits()
_MAX_PASSED = 1024  # waiting requests that a step looks at
_order = attrgetter("order")


class Scheduler:
    """Continuous batching in `Request.order`, with chunked prefill, shared blocks and preemption by recomputation.

    Every step takes the decode rows first (one token each, and draft tokens where there are some), then spends the rest
    of the token budget on prefill chunks; a waiting request is admitted when the pool has blocks for all its tokens,
    less those found in the pool already. When a decode row finds no free block, the last running request is preempted:
    it gives up its blocks and returns to the queue with the ids it has generated. It later computes prompt and
    generated ids as if they were a prompt, as far as they are not found in the pool.

    While a choice of a prompt runs, the others wait until it has computed the prompt; then each shares the full blocks,
    gets a copy of the one that is not full, and computes the prompt's last token alone. While they wait for that, and
    for nothing else, requests behind them may be admitted before them. That ends soon, as the choice that computes is
    not preempted before requests that overtake; and a request that overtakes leaves a slot and blocks for each choice
    that it passes, and no more of its prompt than the next step computes beside them.

    Requests for hidden states have a share of the tokens beside decode rows, which may be none in most steps. One is
    admitted nevertheless, and waits with its slot; those behind it that want the same wait until it has ended, or until
    there is more, and others may be admitted before them.

    A request that is expedited has its prompt computed in a step of rows of expedited requests alone, which is short:
    those of others pause for it, but never for two steps in a row.

    Requests in the background come after all others: they have rows in steps where no other one waits or computes a
    prompt, as far as the limit for them leaves tokens, and lose slots and blocks that others wait for. The first of
    them is treated as others are when none has had a row in `background_patience` steps.

    Invariants, checked by `check_integrity`:
    - running and waiting requests are each in order; the first of all is never preempted, and no request is admitted
      before one that waits for slots, blocks or tokens, but for the share of hidden states: every accepted request
      finishes, those in the background without `background_patience` once no others come.
    - running requests hold one slot each and blocks for all their computed tokens; waiting ones hold neither.
    - every block is free or held by running requests (see `BlockPool`).
    - a preempted request is not admitted again before its token in flight has been accepted.

    max_num_batched_tokens: above max_num_seqs (`EngineConfig` checks that), so that prompts advance in every step.
    max_samples: ids that one step samples at most; drafts share what running requests leave of it.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_samples: int | None = None,
        prefix_caching: bool = True,
        background_patience: int | None = None,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.counters = RequestCounters()
        self.num_preemptions = 0
        self._tables = BlockTables(pool, prefix_caching)
        self._max_samples = max_num_seqs if max_samples is None else max_samples
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))  # lowest first, so that few requests use few slots
        self._arrivals = 0
        self._pauses = Pauses()
        self._patience = Patience(background_patience)

    @property
    def pool(self) -> BlockPool:
        """Return the pool that requests take their blocks from."""
        return self._tables.pool

    # The lifecycle of a request

    def fits(self, num_prompt_tokens: int, max_output: int) -> bool:
        """Return whether a request can run to its end alone."""
        return self._tables.max_blocks(num_prompt_tokens, max_output) <= self.pool.num_blocks

    def add(self, request: Request) -> None:
        """Queue a request. Raises `ValueError` when it could never finish in this pool."""
        if not self.fits(len(request.prompt_ids), request.max_output):
            raise ValueError(f"request {request.request_id} can never fit {self.pool.num_blocks} blocks")
        request.arrival = self._arrivals
        self._arrivals += 1
        self.counters.submit(request)
        insort(self.waiting, request, key=_order)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request, running or waiting; its blocks and slot are free at once.

        Steps in flight may still write the freed blocks: the device executes steps in order, so a new owner's writes
        come later. `accept` drops their sampled ids.
        """
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        self.counters.finish(request, reason)
        if request.slot is None:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
            self._release(request)

    def finish_broken(self, request: Request) -> None:
        """End a request for which the model computes no numbers; no later request gets its keys and values."""
        self.counters.without_numbers += 1
        self._tables.withdraw(request)
        self.finish(request, "error")

    # One step

    def schedule(
        self,
        drafts: Drafts | None = None,
        limits: _Limits = lambda tokens: _NO_LIMITS,
        background: _BackgroundLimit = None,
    ) -> StepRows:
        """Choose the next step's rows and account for them; no rows when there is nothing to compute now.

        drafts: draft tokens of requests without a token in flight; some may be left out.
        limits: returns those of prompts beside decode rows with this number of tokens; a few of the prompts' always go
            in. background: returns the tokens of a step with requests in the background, where others have this number;
            None for no limit.
        """
        self._patience.end(self.running, self.waiting)
        preemptions = self.num_preemptions
        first = self.waiting[0] if self.waiting and self._free_slots else None
        admits = first is not None and first.hurries and self._has_blocks(first, (), 0)
        self._pauses.plan(self.running, admits=admits)
        step = self._rows(drafts or {}, limits, background, preemptions)
        if self._pauses.active and not step.rows:
            self._pauses.active = False
            step = self._rows(drafts or {}, limits, background, preemptions)
        self._patience.scheduled(step, self.running, self.waiting)
        return step

    def _rows(self, drafts: Drafts, limits: _Limits, background: _BackgroundLimit, preemptions: int) -> StepRows:
        """Return the next step. preemptions: before it."""
        rows, verifying = self._decode_rows(drafts)
        used = StepRows([*rows, *verifying], len(rows))
        share = self._background_share(used, background)
        beside = self._background_rows(min(share, self._max_samples - used.num_samples))
        step = StepRows([*rows, *beside, *verifying], len(rows) + len(beside))
        left = share - len(beside)
        if has_all_rows(step, len(used.rows), left, self.running, self.waiting):
            return step  # most steps; limits take time to find
        own = limits(step.num_tokens)
        budget = TokenBudget.beside(step, own, self.max_num_batched_tokens, left)
        self._running_prefills(budget, step)
        # Blocks given up in this step are for the requests that lacked them.
        if preemptions == self.num_preemptions:
            self._admit(budget, step, own.next_step(self.max_num_batched_tokens))
        return step

    def accept(self, rows: Sequence[Row], sampled: Sequence[int]) -> list[tuple[Row, int]]:
        """Take the ids sampled by a step, those of each row after those of the row before.

        Finishes requests that reach a stop id or their length. Returns each row with the number of its sampled ids that
        were taken; rows of requests that had finished before are left out.
        """
        accepted = []
        begin = 0
        for row in rows:
            request, ids = row.request, sampled[begin : begin + row.samples]
            begin += row.samples
            request.in_flight -= bool(ids)
            if request.finish_reason is None:
                accepted.append((row, self._take(row, ids)))
        return accepted

    def undo(self, rows: Sequence[Row]) -> None:
        """Take back the rows of a step in the background, the last one scheduled, which was abandoned."""
        for row in rows:
            row.undo()
        self._patience.undo()

    def _take(self, row: Row, ids: Sequence[int]) -> int:
        """Append sampled ids to the request as long as the drafts before them were right, and return how many."""
        request = row.request
        taken = 0
        for token, draft in zip(ids, [*row.drafts, None], strict=False):
            request.output_ids.append(token)
            taken += 1
            if token in request.stop_ids:
                break
            if len(request.output_ids) >= request.max_output or token != draft:
                break
        if row.drafts:
            request.num_computed = row.start + taken
        self.counters.generated_tokens += taken
        self._tables.publish(request, row.stop if request.background else None)
        if taken and request.output_ids[-1] in request.stop_ids:
            self.finish(request, "stop")
        elif row.stop >= len(request.prompt_ids) and len(request.output_ids) >= request.max_output:
            self.finish(request, "length")
        return taken

    def _decode_rows(self, drafts: Drafts) -> tuple[list[Row], list[Row]]:
        """Return rows for running requests with exactly one token to compute: those without drafts, those with.

        Preempts the last request where blocks are missing. Those in the background are left out.
        """
        alone: list[Row] = []
        verifying: list[Row] = []
        sampling = sum(request.pooled is None and not request.background for request in self.waiting[:_MAX_PASSED])
        arriving = min(sampling, len(self._free_slots))  # samples reserved for them
        foreground = sum(not request.background for request in self.running)
        spare = min(self._max_samples, self.max_num_batched_tokens) - foreground - arriving
        index = 0
        # In order; preemption takes from the end of `running`, so no request chosen here is preempted afterwards.
        while index < len(self.running) and not self.running[index].background:
            request = self.running[index]
            index += 1
            if self._pauses.leave_out(request) or not self._decodes(request):
                continue
            own = () if request.in_flight else self._fitting(request, drafts.get(request, ())[: max(0, spare)])
            spare -= len(own)
            (verifying if own else alone).append(self._row(request, 1, own))
        return alone, verifying

    def _decodes(self, request: Request) -> bool:
        """Return whether a running request has exactly one token to compute, and a block for it."""
        exhausted = request.exhausted and request.num_computed >= len(request.prompt_ids)
        return not exhausted and request.num_tokens - request.num_computed == 1 and self._grow(request)

    def _background_share(self, used: StepRows, limit: Callable[[int], int] | None) -> int:
        """Return how many tokens of a step, of which others use some, are for requests in the background."""
        reading = (other for other in self.running if other.num_tokens - other.num_computed > 1)
        if any(not other.background for other in (*self.waiting[:1], *reading)):
            return 0
        most = self.max_num_batched_tokens
        return max(0, (most if limit is None else min(most, limit(used.num_tokens))) - used.num_tokens)

    def _background_rows(self, share: int) -> list[Row]:
        """Return rows for running requests in the background with exactly one token to compute, not more than some.

        Preempts the last of them where blocks are missing.
        """
        rows: list[Row] = []
        index = sum(not request.background for request in self.running)
        while index < len(self.running) and len(rows) < share:
            request = self.running[index]
            index += 1
            if self._decodes(request):
                rows.append(self._row(request, 1))
        return rows

    def _fitting(self, request: Request, drafts: Sequence[int]) -> tuple[int, ...]:
        """Return as many of the drafts as the request may generate and has blocks for."""
        if not drafts:
            return ()
        drafts = drafts[: request.max_output - request.num_generated - 1]
        # A block for each running request's next token comes first.
        return tuple(drafts[: self._tables.grow_for_drafts(request, len(drafts), reserved=len(self.running))])

    def _running_prefills(self, budget: TokenBudget, step: StepRows) -> None:
        """Add a chunk of each running request that has more than one token to compute, within the budget."""
        for request in self.running:
            pending, length = request.num_tokens - request.num_computed, budget.of(request)
            if pending > 1 and length > 0 and not self._pauses.leave_out(request):  # one pending token is a decode row
                step.rows.append(self._row(request, min(length, pending)))
                budget.take(step.rows[-1])

    def _admit(self, budget: TokenBudget, step: StepRows, limit: int) -> None:
        """Add rows of waiting requests to the step, in order, but for those that wait for others' prompts.

        limit: tokens of the next step, if it has decode rows.
        """
        passed = 0  # number of choices whose prompt is being computed; a free slot is kept for each
        deferred = 0  # number of requests for hidden states that wait for their share
        begun = len(step.rows)
        while budget.tokens > 0 and step.num_samples < self._max_samples:
            if passed + deferred >= min(len(self.waiting), _MAX_PASSED):
                return
            request = self.waiting[passed + deferred]
            if request.in_flight or self._pauses.leave_out(request):  # the first: its last token has not been read yet
                return
            if request.background and budget.background <= 0:
                return
            if passed >= len(self._free_slots) and not self._preempt_for(request):
                return
            if budget.of(request) <= 0 and request.pooled is None:
                return
            if budget.of(request) <= 0 and any(other.pooled is not None for other in self.running):
                deferred += 1
                continue
            readers = readers_of(request, self.running)
            source = next((reader for reader in readers if has_written_prompt(reader, step.rows, begun)), None)
            if readers and source is None:
                passed += 1
                continue
            if source is None:
                found = self._tables.find(request)
                computed = len(found) * self.pool.block_size
            else:  # all but the prompt's last token, whose logits are needed
                computed = len(request.prompt_ids) - 1
                found = source.blocks[: computed // self.pool.block_size]
            while not self._has_blocks(request, found, passed):
                if not self._preempt_for(request):
                    return
            pending = request.num_tokens - computed
            # The rest of its prompt must leave a token for each slot of the next step.
            if passed and pending - budget.of(request) > limit - self.max_num_seqs:
                return
            self.waiting.pop(passed + deferred)
            self._start(request, found, computed)
            if source is not None and computed % self.pool.block_size:
                step.copies.append((source.blocks[len(found)], request.blocks[len(found)]))
            if budget.of(request) > 0:
                step.rows.append(self._row(request, min(budget.of(request), pending)))
                budget.take(step.rows[-1])

    def _has_blocks(self, request: Request, found: Sequence[int], passed: int) -> bool:
        """Return whether there are blocks for a request, some of them found, beside those that it leaves to others."""
        needed = self.pool.blocks_for(request.num_tokens) - len(found)
        # Running requests that still grow will soon want a block; admitting into the last ones would preempt.
        headroom = sum(map(self._tables.can_grow, self.running))
        kept = 2 * passed  # each choice takes one for the end of its prompt, and soon grows
        return needed + self.pool.free_among(found) + headroom + kept <= self.pool.num_free

    def _start(self, request: Request, found: list[int], computed: int) -> None:
        """Move a request to the running ones, with its blocks assigned and its first tokens computed."""
        self._tables.assign(request, found)
        request.num_computed = computed
        if request.num_cached is None:
            request.num_cached = min(computed, len(request.prompt_ids))
        request.slot = self._free_slots.pop()
        request.slot_state_is_set = False
        insort(self.running, request, key=_order)

    def _row(self, request: Request, length: int, drafts: tuple[int, ...] = ()) -> Row:
        """Return a row of the next `length` tokens and the drafts after them, and count its tokens as dispatched."""
        start, stop = request.num_computed, request.num_computed + length
        samples = 1 + len(drafts) if stop == request.num_tokens and request.max_output > 0 else 0
        row = Row(
            request, start, length + len(drafts), samples, token_in_flight=stop > request.num_known, drafts=drafts
        )
        request.num_computed = row.stop
        if not request.background:  # else the step may be abandoned: `_take` publishes what it has written
            self._tables.publish(request)
        request.in_flight += bool(samples)
        return row

    def _grow(self, request: Request) -> bool:
        """Make space for one more token, by preemption if need be; False when that preempts the request itself."""
        while not self._tables.grow(request):
            last = self.running[-1]
            self._preempt(last)
            if last is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.num_computed = 0
        insort(self.waiting, request, key=_order)
        self.num_preemptions += 1

    def _preempt_for(self, waiting: Request) -> bool:
        """Preempt a request in the background for one that is not; return False where there is none.

        It has no row in this step: while others wait, those in the background have none.
        """
        if waiting.background or not self.running or not self.running[-1].background:
            return False
        self._preempt(self.running[-1])
        return True

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        self._tables.release(request)
        self._free_slots.append(request.slot)
        request.slot = None

    def check_integrity(self) -> None:
        """Check the invariants of the class. Raises `AssertionError` that names a broken one."""
        self.pool.check_integrity(request.blocks for request in self.running)
        check_requests(self.running, self.waiting, self._free_slots, self.max_num_seqs, self.pool.block_size)
